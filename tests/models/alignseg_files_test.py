"""AlignSeg's checkpoints: a round trip, other numbers of layers, and what is refused and how."""

import pathlib
import tempfile

import jax
import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized

from fs4_jax.models.alignseg_files import export_alignseg, load_alignseg, official_tensors
from fs4_jax.models.encoder_files import load_encoder
from fs4_jax.models.prototype_decoder import PrototypeDecoder
from fs4_jax.models.vit import make_encoder
from fs4_jax.models.weight_files import WeightsError

_WIDTH, _K, _HIDDEN = 128, 5, 96


def random_model(num_layers=2, num_heads=4, bug_compatible=False):
    """(encoder, decoder, params) with random values everywhere."""
    encoder = make_encoder("mu/8", image_size=32)
    decoder = PrototypeDecoder(_K, num_heads, _HIDDEN, num_layers, bug_compatible)
    shapes = {"encoder": jax.eval_shape(encoder.init, jax.random.key(0),
                                        np.zeros((1, 32, 32, 3), np.float32))["params"],
              "decoder": jax.eval_shape(decoder.init, jax.random.key(0),
                                        np.zeros((1, 4, _WIDTH)))["params"]}
    rng = np.random.default_rng(0)
    return encoder, decoder, jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


class AlignSegFilesTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def written(self, name="model.safetensors", **options):
        encoder, decoder, params = random_model(**options)
        export_alignseg(params, self.folder / name, encoder=encoder, decoder=decoder)
        return self.folder / name, encoder, decoder, params

    def changed(self, change, prefix=""):
        """A file whose tensors `change` has been at."""
        path, *_ = self.written()
        tensors = safetensors.numpy.load_file(path)
        change(tensors)
        path = self.folder / "changed.safetensors"
        safetensors.numpy.save_file({prefix + k: v for k, v in tensors.items()}, path)
        return path

    @parameterized.parameters(("model.safetensors", 1, False), ("model.npz", 3, True),
                              ("model.safetensors", 2, False))
    def test_there_and_back(self, name, num_layers, bug):
        path, encoder, decoder, params = self.written(name, num_layers=num_layers,
                                                      bug_compatible=bug)
        model = load_alignseg(path)
        self.assertEqual((model.encoder, model.decoder), (encoder, decoder))
        jax.tree.map(np.testing.assert_array_equal, model.params, params)

    def test_the_encoder_alone_can_be_read_too(self):
        path, encoder, _, params = self.written()
        model, found = load_encoder(path)
        self.assertEqual(model, encoder)
        jax.tree.map(np.testing.assert_array_equal, found, params["encoder"])

    def test_names_and_shapes_are_the_official_ones(self):
        tensors = official_tensors(random_model(num_layers=1)[2]["decoder"])
        attention = {"in_proj_weight": (384, 128), "in_proj_bias": (384,),
                     "out_proj.weight": (128, 128), "out_proj.bias": (128,)}
        norm = {"norm.weight": (128,), "norm.bias": (128,)}
        want = {"clsQueries.weight": (5, 128)}
        for scope, name in (("cross", "multihead_attn"), ("self", "self_attn")):
            scope = f"decoder_{scope}_attention_layers.0"
            want |= {f"{scope}.{name}.{k}": shape for k, shape in attention.items()}
            want |= {f"{scope}.{k}": shape for k, shape in norm.items()}
        ffn = {"linear1.weight": (96, 128), "linear1.bias": (96,), "linear2.weight": (128, 96),
               "linear2.bias": (128,), **norm}
        want |= {f"decoder_ffn_layers.0.{k}": shape for k, shape in ffn.items()}
        self.assertEqual({k: v.shape for k, v in tensors.items()}, want)

    def test_a_released_file_says_nothing_of_heads_and_stacking(self):
        path = self.changed(lambda tensors: None, prefix="state_dict.")
        model = load_alignseg(path, num_heads=4)
        self.assertEqual((model.decoder.num_heads, model.decoder.bug_compatible), (4, True))
        self.assertFalse(load_alignseg(path, num_heads=2, bug_compatible=False)
                         .decoder.bug_compatible)
        with self.assertRaisesRegex(WeightsError, "3 heads do not divide the width 128"):
            load_alignseg(path)

    def test_wrong_tensors_are_named(self):
        def spoil(tensors):
            del tensors["decoder_ffn_layers.1.linear2.bias"]
            tensors["decoder_ffn_layers.0.linear3.bias"] = np.zeros(7, np.float32)
            name = "decoder_self_attention_layers.0.self_attn.in_proj_weight"
            tensors[name] = np.zeros((384, 64), np.float32)
            tensors["clsQueries.weight"] = tensors["clsQueries.weight"].astype(np.int32)

        with self.assertRaises(WeightsError) as caught:
            load_alignseg(self.changed(spoil), num_heads=4)
        message = str(caught.exception)
        for line in ("missing decoder_ffn_layers.1.linear2.bias [128]",
                     "extra decoder_ffn_layers.0.linear3.bias [7]",
                     "decoder_self_attention_layers.0.self_attn.in_proj_weight is [384, 64], not "
                     "[384, 128]",
                     "clsQueries.weight is I32, not float16, bfloat16 or float32"):
            self.assertIn(line, message)
        self.assertEqual(message.count("\n"), 4, message)

    @parameterized.parameters(
        (lambda t: t.pop("clsQueries.weight"), "missing clsQueries.weight"),
        (lambda t: t.pop("backbone.norm.weight"), r"missing norm.weight \[128\]"),
        (lambda t: t["clsQueries.weight"].fill(np.nan), "not finite: clsQueries.weight"))
    def test_refusals(self, change, message):
        with self.assertRaisesRegex(WeightsError, message):
            load_alignseg(self.changed(change), num_heads=4)

    def test_a_file_of_an_encoder_alone(self):
        def strip(tensors):
            for name in list(tensors):
                if not name.startswith("backbone."):
                    del tensors[name]
        with self.assertRaisesRegex(WeightsError, "missing clsQueries.weight"):
            load_alignseg(self.changed(strip))


if __name__ == "__main__":
    absltest.main()
