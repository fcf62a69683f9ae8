"""SpeechBrain's Transformer language model, with this project's call."""

import torch
from speechbrain.lobes.models.transformer import TransformerLM as speechbrain_lm


class TransformerLM(speechbrain_lm.TransformerLM):
    """SpeechBrain's ``TransformerLM``: same constructor, state dict and output.

    Example
    -------
    >>> import torch
    >>> lm = TransformerLM(vocab=10, d_model=8, nhead=2, num_encoder_layers=1, d_ffn=16)
    >>> lm(torch.tensor([[1, 5, 6]])).shape, lm.num_tokens
    (torch.Size([1, 3, 10]), 10)
    """

    @property
    def num_tokens(self) -> int:
        """Tokens of the vocabulary, as in the other language models."""
        return self.custom_src_module.emb.Embedding.num_embeddings

    def forward(
        self, tokens: torch.Tensor, input_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predict the token after each.

        Arguments
        ---------
        tokens : torch.Tensor
            (B, T) int64, begun with the sentence begin; 0 pads.
        input_mask : torch.Tensor, optional
            (B, T) bool, True = a real token. Not needed: the model is causal and its
            padding, all 0, stands at the end.

        Returns
        -------
        torch.Tensor
            (B, T, V) logits.
        """
        return super().forward(tokens)
