"""What mixers share that combine each frame with means over the frames it may see."""

import torch

from hyperconformer.mixers.base import TokenMixer, frames_of_step
from hyperconformer.ops.summary_mixing import init_past_sums, summary_mean


class MeansMixer(TokenMixer):
    """Base of such mixers: the means, the rules they honour, and the state they need.

    A causal one takes any number of frames a step, unless a rule bounds its left
    context: that bound moves chunk by chunk.

    Attributes
    ----------
    causal : bool
        Whether frames see only frames up to themselves.
    summary_size : int
        Width S of what is averaged.
    """

    chunkable = True
    streamable = True
    needs_position = True
    summary_size: int

    def means(self, summaries, *, padding_mask=None, chunk=None, state=None):
        """Means over the frames that each frame may see, and the state after them.

        Arguments
        ---------
        summaries : torch.Tensor
            (B, T, S).
        padding_mask, chunk, state
            See :meth:`~hyperconformer.mixers.base.TokenMixer.forward`.

        Returns
        -------
        means : torch.Tensor
            See :func:`hyperconformer.ops.summary_mixing.summary_mean`.
        state : dict of str to torch.Tensor or None
            None where no state was given.

        Raises
        ------
        ValueError
            If the state was made for another rule.
        """
        if state is not None:
            new = self._frames_of_step(summaries, padding_mask, chunk, state)
        means, sums = summary_mean(
            summaries,
            padding_mask=padding_mask,
            chunk=chunk,
            causal=self.causal,
            past_sums=None if state is None else state["sums"],
        )
        if state is None:
            return means, None
        return means, {
            "frames_seen": state["frames_seen"] + new,
            "sums": sums.to(state["sums"].dtype),
        }

    def _frames_of_step(self, x, padding_mask, chunk, state):
        bounded = chunk is not None and chunk.left_chunks is not None
        expected = chunk.left_chunks if bounded else 1
        if state["sums"].shape[1] != expected:
            raise ValueError(
                f"a state with sums of {expected} chunks is needed for {chunk}, got "
                f"one with {state['sums'].shape[1]}: make it with init_state(chunk=...)"
            )
        whole_chunks = self.step_unit(chunk) > 1
        return frames_of_step(
            x, padding_mask, state["frames_seen"], chunk if whole_chunks else None
        )

    def unsupported_reason(self, chunk=None):
        """See :meth:`~hyperconformer.mixers.base.TokenMixer.unsupported_reason`."""
        if chunk is None and not self.causal:
            return (
                f"streaming {type(self).__name__} needs causal=True or a chunk rule, "
                "got neither"
            )
        return None

    def step_unit(self, chunk=None):
        """See :meth:`~hyperconformer.mixers.base.TokenMixer.step_unit`."""
        bounded = chunk is not None and chunk.left_chunks is not None
        return super().step_unit(chunk) if bounded or not self.causal else 1

    def init_state(self, batch_size, *, chunk=None, device=None, dtype=None):
        """Sums over no frame yet; see :class:`~hyperconformer.mixers.base.TokenMixer`.

        Returns
        -------
        dict of str to torch.Tensor
            ``frames_seen`` (B,) int64 and ``sums`` (B, P, summary_size + 1), float32
            at least: P = 1 running sum and its count of frames, or with a bounded
            left context P = ``left_chunks``, those of each chunk.
        """
        weight = next(self.parameters())
        device = weight.device if device is None else device
        dtype = weight.dtype if dtype is None else dtype
        dtype = torch.promote_types(dtype, torch.float32)
        sums = init_past_sums(batch_size, self.summary_size, chunk)
        return {
            "frames_seen": torch.zeros(batch_size, dtype=torch.int64, device=device),
            "sums": sums.to(device, dtype),
        }
