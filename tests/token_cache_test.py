"""Kept tokens stand for their views: the same loss, whole after an interruption, never stale."""

import contextlib
import io
import itertools
import json
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest

from fs4_jax import token_cache, train
from fs4_jax.config import ConfigError
from fs4_jax.data.images import UnreadableImage
from fs4_jax.models.encoder_files import export_encoder
from fs4_jax.models.vit import make_encoder
from fs4_jax.run import checked_source, prepare
from fs4_jax.token_cache import cached_views
from tests.data.files import FolderCase
from tests.train_test import quietly, restored, tiny_config


class TokenCacheTest(FolderCase):

    def setUp(self):
        super().setUp()
        self.config = self.with_weights("first", 0)
        self.run_ = prepare(self.config)
        self.source = checked_source(self.config, "train")

    def with_weights(self, name, seed, **encoder):
        """A tiny config with random weights from a file, frozen, two draws."""
        path = self.root / f"{name}.safetensors"
        if not path.exists():
            model = make_encoder("mu/8", image_size=32)
            params = model.init(jax.random.key(seed), np.zeros((1, 32, 32, 3), np.float32))
            export_encoder(params["params"], path, model=model)
        config = tiny_config()
        config.encoder.update(dict(weights=str(path), frozen=True, cached_views=2) | encoder)
        return config

    def made(self, folder="cache", run=None, source=None):
        with contextlib.redirect_stderr(io.StringIO()) as self.told:
            return cached_views(run or self.run_, source or self.source, self.root / folder)

    def test_the_loss_of_kept_tokens_is_that_of_the_views(self):
        cache = self.made()
        self.assertLen(cache, 16)
        method, state = self.run_.method, self.run_.create_state()
        views = token_cache._Views(self.run_.make_views, self.source)
        rows = [3, 7, 16 + 2, 16 + 15]
        batch = token_cache._stacked([views(row)[1] for row in rows], len(rows))
        kept = {name: np.stack([array[row] for row in rows])
                for name, array in cache.arrays.items()}
        losses = [method.loss(state.params, state.teacher, state.extra, b, jax.random.key(0), 0)
                  for b in (batch, kept)]
        # Tokens are kept in float16: a relative 5e-4, and cosines are divided by 0.05.
        np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=5e-3)
        self.assertEqual(set(cache.keys), {"patch_tokens", "cls", "appearance", "correspondence",
                                           "valid"})
        self.assertEqual(cache.arrays["patch_tokens"].dtype, np.float16)

    def test_the_crops_of_another_method(self):
        """AlignSeg's: what its encoder sees of them, and where they lie, as it was drawn."""
        config = self.with_weights("first", 0)
        config.method, config.alignseg.num_heads = "alignseg", 4
        run = prepare(config)
        cache = self.made("crops", run)
        self.assertEqual({name: array.shape for name, array in cache.arrays.items()},
                         {"patch_tokens": (32, 3, 4, 4, 128), "attention": (32, 3, 4, 4),
                          "correspondence": (32, 2, 4, 4, 2), "valid": (32, 2, 4, 4)})
        views = token_cache._Views(run.make_views, self.source)
        crops = token_cache._stacked([views(row)[1] for row in (3, 17)], 2)
        seen = run.method.keep({"encoder": run.encoder_params}, crops)
        for name, array in cache.arrays.items():
            rows, drawn = np.stack([array[row] for row in (3, 17)]), name in run.make_views.kept
            np.testing.assert_allclose(rows, (crops if drawn else seen)[name],
                                       rtol=0 if drawn else 2e-3, atol=0 if drawn else 2e-3)

    def test_each_draw_is_read(self):
        cache = self.made()
        rng = np.random.default_rng(0)
        seen = {cache(5, rng)["patch_tokens"].tobytes() for _ in range(20)}
        self.assertEqual(seen, {cache.arrays["patch_tokens"][row].tobytes() for row in (5, 21)})

    def test_an_interrupted_pass_goes_on_where_it_was(self):
        whole = self.made("whole")
        stacked, calls = token_cache._stacked, itertools.count()

        def stop(*args):
            if next(calls) == 2:
                raise KeyboardInterrupt
            return stacked(*args)

        with (mock.patch.object(token_cache, "_stacked", stop),
              mock.patch.object(token_cache, "_FLUSH_SECONDS", -1.0),
              self.assertRaises(KeyboardInterrupt)):
            self.made("parts")
        self.assertEqual(json.loads((self.root / "parts/progress.json").read_text())["done"], 16)
        calls = itertools.count()
        with mock.patch.object(token_cache, "_stacked", lambda *args: (next(calls),
                                                                       stacked(*args))[1]):
            parts = self.made("parts")
        self.assertEqual(next(calls), 2)           # of 32 rows, the second half
        for name in whole.arrays:
            np.testing.assert_array_equal(whole.arrays[name], parts.arrays[name])

    def test_a_stale_cache_is_refused_by_what_differs(self):
        self.made()
        self.made()
        changes = {"weights": self.with_weights("second", 1),
                   "block": self.with_weights("first", 0, block=1),
                   "cached_views": self.with_weights("first", 0, cached_views=3)}
        changes["views"] = self.with_weights("first", 0)
        changes["views"].data.blur = 0.9
        changes["images"] = self.with_weights("first", 0)
        changes["images"].data.num_train = 12
        for differs, config in changes.items():
            with self.subTest(differs), self.assertRaisesRegex(ConfigError,
                                                               f"another one:(.|\n)*{differs}:"):
                self.made(run=prepare(config), source=checked_source(config, "train"))
        (self.root / "cache" / "cls.npy").unlink()
        np.save(self.root / "cache" / "cls.npy", np.zeros((3, 4), np.float16))
        with self.assertRaisesRegex(ConfigError, "cache is damaged: remove it"):
            self.made()

    def test_an_encoder_that_changes_is_refused(self):
        for key, value in (("frozen", False), ("weights", "")):
            config = self.with_weights("first", 0, **{key: value})
            with self.subTest(key), self.assertRaisesRegex(ConfigError, "encoder.frozen=True"):
                self.made(run=prepare(config))

    def test_several_processes_are_refused(self):
        with mock.patch.object(jax, "process_count", return_value=2), self.assertRaisesRegex(
                ConfigError, "config.encoder.cached_views is for one process, there are 2: set it "
                "to 0"):
            self.made()

    def test_unreadable_images_are_left_out_and_named(self):
        class Holes:
            num_classes = 0

            def __len__(holes):
                return 16

            def image(holes, i, at_least=None):
                if i in (4, 15):
                    raise UnreadableImage(f"{i}.jpg is cut off")
                return self.source[i]["image"]

            def size(holes, i):
                return 32, 32

            def example_name(holes, i):
                return f"{i}"

        cache = self.made(source=Holes())
        self.assertLen(cache, 14)
        self.assertEqual(cache.example_name(4), "5")
        self.assertIn("skipped 4.jpg is cut off", self.told.getvalue())
        full = self.made("full")
        rng = np.random.default_rng
        np.testing.assert_array_equal(cache(4, rng(0))["cls"], full(5, rng(0))["cls"])

    def test_runs_share_a_cache_and_the_same_seed_gives_the_same_bits(self):
        states = []
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            config = self.with_weights("first", 0, cache_dir=str(self.root / "shared"))
            config.seed = seed
            self.assertEqual(quietly(train.train, config, self.root / name)[0], 0)
            self.assertFalse((self.root / name / "tokens").exists())
            states.append(restored(config, self.root / name)[2]["head"])
        jax.tree.map(np.testing.assert_array_equal, states[0], states[1])
        self.assertNotEqual(states[0]["classifier"]["prototypes"].tobytes(),
                            states[2]["classifier"]["prototypes"].tobytes())


if __name__ == "__main__":
    absltest.main()
