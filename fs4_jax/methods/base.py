"""What the training loop asks of a method. Everything is a function of its arguments."""

from typing import Any, Protocol


class Method(Protocol):
    """A method; see `FS4` for the first of them.

    frozen: the keys of `params` that are not trained ("encoder" or none).
    """
    frozen: tuple[str, ...]

    def init(self, key, images) -> tuple[Any, Any]:
        """(params, extra) for images of this shape; jitted by the caller."""

    def loss(self, params, teacher, extra, batch, key) -> tuple[Any, dict]:
        """(loss, metrics): float32 scalars; metrics "loss_*" are the terms of the loss."""

    def update_teacher(self, teacher, trained, step) -> Any:
        """The teacher after a step."""

    def fit(self, params, extra, batches, key) -> tuple[Any, Any]:
        """(params, extra) started from the data: batches yields device-ready train batches."""

    def refit(self, params, teacher, extra, batches, key) -> Any:
        """extra, fitted anew with what has been learnt so far (a bootstrap round)."""

    def inference_params(self, params, teacher) -> Any:
        """The parameters that predict."""

    def predict(self, params, images) -> dict:
        """images uint8 [b, H, W, 3] -> "logits" [b, h, w, k], "embedding" [b, h, w, c],
        "patch_tokens" [b, h, w, d]."""

    def classify(self, params, embedding) -> Any:
        """logits [..., k] of embeddings [..., c], wherever and however they were sampled."""
