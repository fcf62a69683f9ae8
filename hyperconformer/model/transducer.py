"""A transducer head: the next token from the frames and the tokens so far.

"Sequence Transduction with Recurrent Neural Networks", arXiv:1211.3711. Embedding, GRU,
joint and greedy search are SpeechBrain's; the loss is torchaudio's, as SpeechBrain's
own one needs CUDA.
"""

import torch
from speechbrain.decoders.transducer import TransducerBeamSearcher
from speechbrain.nnet.embedding import Embedding
from speechbrain.nnet.RNN import GRU
from speechbrain.nnet.transducer.transducer_joint import Transducer_joint
from torch import nn
from torchaudio.functional import rnnt_loss

from hyperconformer.core.tokens import BLANK_INDEX
from hyperconformer.nn.linear import Linear


class Transducer(nn.Module):
    """Predictor and joint network.

    The logits of training are (B, T, U + 1, V): meant for some dozens of tokens, as
    characters are, or for short batches.

    Arguments
    ---------
    d_model : int
        Width D of the encoder's frames.
    vocab_size : int
        Number of tokens V; token 0 is the blank.
    width : int
        Width of the embedding, the predictor and the joint network.

    Example
    -------
    >>> transducer = Transducer(d_model=16, vocab_size=5, width=8)
    >>> tokens = torch.tensor([[3, 1], [2, 0]])
    >>> logits = transducer(torch.rand(2, 7, 16), tokens)
    >>> logits.shape
    torch.Size([2, 7, 3, 5])
    >>> frames, counts = torch.tensor([7, 5]), torch.tensor([2, 1])
    >>> transducer_loss(logits, tokens, frames, counts).shape
    torch.Size([2])
    """

    def __init__(self, d_model: int, vocab_size: int, width: int = 256):
        super().__init__()
        self.embedding = Embedding(vocab_size, width)
        self.predictor = GRU(hidden_size=width, input_size=width)
        self.projection = Linear(d_model, width)
        self.joint = Transducer_joint(joint="sum", nonlinearity=nn.Tanh)
        self.output = Linear(width, vocab_size)

    def forward(self, encoded: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """What follows each beginning of known tokens, in each frame.

        Arguments
        ---------
        encoded : torch.Tensor
            (B, T, D) the encoder's frames.
        tokens : torch.Tensor
            (B, U) int64; padding may be any token.

        Returns
        -------
        torch.Tensor
            (B, T, U + 1, V) logits.
        """
        begun = nn.functional.pad(tokens, (1, 0), value=BLANK_INDEX)
        predicted, _ = self.predictor(self.embedding(begun))
        frames = self.projection(encoded)
        return self.output(self.joint(frames.unsqueeze(2), predicted.unsqueeze(1)))

    @torch.no_grad()
    def decode(
        self, encoded: torch.Tensor, memory: tuple[torch.Tensor, ...] | None = None
    ) -> tuple[list[int], float, tuple[torch.Tensor, ...]]:
        """Greedy search through the next frames of one stream.

        Arguments
        ---------
        encoded : torch.Tensor
            (T, D) frames.
        memory : tuple of torch.Tensor, optional
            From the last call; None = the stream begins.

        Returns
        -------
        tokens : list of int
            What was said in these frames.
        score : float
            The tokens' log-probability, without the blanks.
        memory : tuple of torch.Tensor
            What the predictor remembers; not changed by later calls.
        """
        searcher = TransducerBeamSearcher(
            decode_network_lst=[self.embedding, self.predictor],
            tjoint=self.joint,
            classifier_network=[self.output],
            blank_id=BLANK_INDEX,
            beam_size=1,
        )
        if memory is not None:  # SpeechBrain writes into it.
            memory = tuple(tensor.clone() for tensor in memory)
        (tokens,), probability, _, _, memory = searcher.transducer_greedy_decode(
            self.projection(encoded).unsqueeze(0), memory, return_hidden=True
        )
        # SpeechBrain gives the mean of one probability.
        return tokens, probability.clamp(min=1e-30).log().item(), memory

    @torch.no_grad()
    def leading_blanks(
        self, encoded: torch.Tensor, memory: tuple[torch.Tensor, ...]
    ) -> int:
        """How many of the next frames of a stream say nothing, before one says a token.

        They are asked at once: until a token is said, the predictor stands still.

        Arguments
        ---------
        encoded : torch.Tensor
            (T, D) frames.
        memory : tuple of torch.Tensor
            From :meth:`decode`.

        Returns
        -------
        int
            From 0 to T.
        """
        predicted = memory[0].unsqueeze(1)
        frames = self.projection(encoded)[None, :, None]
        said = self.output(self.joint(frames, predicted)).argmax(-1) != BLANK_INDEX
        places = said.flatten().nonzero()
        return int(places[0]) if len(places) else len(encoded)


def transducer_loss(logits, tokens, frames, counts):
    """Negative log-probability of the tokens, over all of their alignments.

    Arguments
    ---------
    logits : torch.Tensor
        (B, T, U + 1, V).
    tokens : torch.Tensor
        (B, U) int64, no blank among the real ones.
    frames : torch.Tensor
        (B,) int64 real frames.
    counts : torch.Tensor
        (B,) int64 real tokens.

    Returns
    -------
    torch.Tensor
        (B,) float32.
    """
    # It wants the batch cut to its longest frames and tokens, in float32.
    longest = int(frames.max()), int(counts.max())
    return rnnt_loss(
        logits[:, : longest[0], : longest[1] + 1].float().contiguous(),
        tokens[:, : longest[1]].int().contiguous(),
        frames.int(),
        counts.int(),
        blank=BLANK_INDEX,
        reduction="none",
    )
