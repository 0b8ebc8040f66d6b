"""What labels find in an encoder's tokens: a linear probe and nearest neighbours.

They read labels of the training split: a look at an encoder's progress, never a score of
label-free segmentation.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax import distributed
from fs4_jax.clustering.kmeans import unit_length
from fs4_jax.data.pipeline import eval_batches
from fs4_jax.evaluation.confusion import IGNORE_LABEL, Confusion, confusion_matrix
from fs4_jax.evaluation.geometry import sample
from fs4_jax.evaluation.knn import knn_scores, token_labels
from fs4_jax.evaluation.probe import apply_probe, fit_probe
from fs4_jax.evaluation.protocols import evaluate_counts
from fs4_jax.evaluation.upsample import upsample_argmax
from fs4_jax.sharding import batch_sharding, replicated, round_up

_BANK = 20_000        # labelled tokens that neighbours are looked for among


class TokenProbes:
    """Scores tokens by probes, on a sample of the images; compiled once.

    Args:
      method: see `methods.base`. train_source, eval_source: labelled images of the same classes.
      config: ConfigDict; config.eval.probe_images of each split are used, at data.eval_size.
      mesh: where.
    """

    def __init__(self, method, train_source, eval_source, config, mesh):
        self.config, self.mesh = config, mesh
        self.num_classes = eval_source.num_classes
        self._train, self._eval = train_source, eval_source
        self._patch = method.encoder.patch
        self._encode = jax.jit(lambda params, image: unit_length(
            method.predict(params, image)["patch_tokens"].astype(jnp.float32)))
        self._labels = jax.jit(token_labels, static_argnames=("grid", "num_classes"))
        self._count = jax.jit(self._count_batch, out_shardings=replicated(mesh))

    def run(self, params):
        """{"linear": {"miou", "accuracy"}, "knn": {...}} in percent, on the evaluation split."""
        batches = list(self._tokens(params, self._train))
        bank, bank_labels = self._bank(batches)
        probe = self._fit_linear(batches)
        del batches
        counts = {"linear": Confusion(self.num_classes, self.num_classes),
                  "knn": Confusion(self.num_classes, self.num_classes)}
        for tokens, batch in self._tokens(params, self._eval):
            shape = tokens.shape[:-1]
            votes = knn_scores(tokens.reshape(-1, tokens.shape[-1]), bank, bank_labels,
                               num_classes=self.num_classes,
                               num_neighbours=min(20, len(bank)))
            logits = {"linear": apply_probe(probe, tokens),
                      "knn": votes.reshape(*shape, -1)}
            for name, value in logits.items():
                counts[name].add(np.asarray(self._count(value, batch["label"], batch["size"])))
        scores = {name: evaluate_counts(c.counts, "identity")
                  for name, c in counts.items()}
        return {name: {"miou": s.miou, "accuracy": s.accuracy} for name, s in scores.items()}

    def _tokens(self, params, source):
        """(unit tokens [b, h, w, d] on the devices, batch) of a sample of a source."""
        data = self.config.data
        for batch in eval_batches(
                sample(source, self.config.eval.probe_images), patch=self._patch,
                batch_size=round_up(self.config.eval.batch_size, self.mesh),
                image_size=data.eval_size or data.image_size, on_unreadable="skip",
                process_index=jax.process_index(), process_count=jax.process_count()):
            batch = distributed.rows_to_devices(batch, batch_sharding(self.mesh))
            yield self._encode(params, batch["image"]), batch

    def _bank(self, batches):
        tokens, labels = [], []
        for x, batch in batches:
            label = self._labels(batch["label"], batch["size"], grid=x.shape[1:3],
                                 num_classes=self.num_classes)
            x, label = distributed.to_host((x, label))
            tokens.append(x[label != IGNORE_LABEL])
            labels.append(label[label != IGNORE_LABEL])
        tokens, labels = np.concatenate(tokens), np.concatenate(labels)
        if len(labels) > _BANK:
            rng = np.random.default_rng(self.config.seed)
            chosen = rng.choice(len(labels), _BANK, replace=False)
            tokens, labels = tokens[chosen], labels[chosen]
        return distributed.to_devices((tokens, labels), replicated(self.mesh))

    def _fit_linear(self, batches):
        rng = np.random.default_rng(self.config.seed)

        def endless():
            for _ in range(self.config.eval.probe_steps):
                tokens, batch = batches[rng.integers(len(batches))]
                yield tokens, batch["label"], batch["size"]

        return fit_probe(endless(), self.num_classes, learning_rate=5e-3)[0]

    def _count_batch(self, logits, label, size):
        """int [classes, classes] of a batch; padding has no votes."""
        ids = upsample_argmax(logits, size, label.shape[1:])
        return confusion_matrix(ids, label, num_clusters=self.num_classes,
                                num_classes=self.num_classes)
