"""What FS^4 puts on an encoder: context embedding, prototypes, pyramid heads."""

from collections.abc import Mapping

import flax.linen as nn

from fs4_jax.losses.pyramid import pool_cells
from fs4_jax.models.context_embedding import ContextEmbedding
from fs4_jax.models.prototypes import Prototypes


class SegmentationHead(nn.Module):
    """patch_tokens [b, h, w, d], appearance [b, h, w, a] -> dict.

    "embedding" [b, h, w, c], "cosines" [b, h, w, num_clusters] in [-1, 1], "cells": {level:
    logits [b, l, l, k_l]}, left out with pyramid=False.

    num_clusters: prototypes. embedding: settings of ContextEmbedding. pyramid: {level: k_l}.
    """
    num_clusters: int
    embedding: Mapping
    pyramid: Mapping

    @nn.compact
    def __call__(self, patch_tokens, appearance, pyramid=True):
        embedding = ContextEmbedding(**self.embedding, name="context")(patch_tokens, appearance)
        cosines = Prototypes(self.num_clusters, name="classifier")(embedding)
        if not pyramid:               # any grid is segmented, also one too small for the cells
            return {"embedding": embedding, "cosines": cosines}
        cells = {level: nn.Dense(num, name=f"pyramid_{level}")(pool_cells(embedding, int(level)))
                 for level, num in self.pyramid.items()}
        return {"embedding": embedding, "cosines": cosines, "cells": cells}
