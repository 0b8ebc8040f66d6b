"""The layers of the house: an import only points down, and files stay short enough to read.

The table is design's, brought up to the files there are. A new file gets its line in LAYERS.
"""

import ast
import pathlib

from absl.testing import absltest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "fs4_jax"

# Modules below fs4_jax, lowest layer first; "data" stands for data/__init__.py alone.
LAYERS = (
    # L0: pure functions of arrays, and settings
    {"", "clustering", "clustering.guided", "clustering.kmeans", "clustering.merge",
     "clustering.image_mixture", "clustering.sinkhorn",
     "clustering.view_consistency",
     "clustering.stream", "clustering.validity", "affinity",
     "affinity.windowed", "affinity.dense", "affinity.pairs", "affinity.permutohedral",
     "affinity.crf", "evaluation",
     "evaluation.confusion", "evaluation.matching", "evaluation.per_image", "evaluation.objects",
     "evaluation.protocols", "evaluation.upsample", "evaluation.floors", "evaluation.collapse",
     "evaluation.geometry", "evaluation.readout", "evaluation.probe", "evaluation.knn",
     "evaluation.tally", "evaluation.regions", "sharding", "optimizer", "metrics", "config",
     "config_checks", "config_files", "onnx_graph", "onnx_rules", "distributed", "compile_cache",
     "nonfinite", "stopping", "long_rows", "batch_log", "whole_files", "archives", "lazy_names"},
    # L1: models, losses, sources of images
    {"models", "models.position", "models.block_ops", "models.transformer", "models.vit",
     "models.architecture", "models.weight_files", "models.weight_names", "models.encoder_files",
     "models.heads", "models.prototypes", "models.projection", "models.masking",
     "models.context_embedding", "models.prototype_decoder", "models.foreground",
     "models.alignseg_files", "models.decoder",
     "losses", "losses.assignment", "losses.pyramid", "losses.distillation", "losses.kernel",
     "losses.alignment", "losses.partial", "losses.regularized", "losses.consistency",
     "data", "data.images", "data.folder", "data.stored", "data.cocostuff", "data.voc",
     "data.scribblesup", "data.cityscapes", "data.potsdam", "data.camvid", "data.scenes",
     "data.scene_textures", "data.views", "data.crops", "data.aligned_crops", "data.scribbles",
     "data.strokes", "data.labelled_crop", "data.whole_images", "data.inputs", "data.tiles",
     "state"},
    # L2: files and pictures
    {"data.sources", "data.pipeline", "data.build", "data.cocostuff_tfds", "errors", "checkpoint",
     "cluster_names", "evaluation.pictures", "evaluation.report", "evaluation.report_charts",
     "evaluation.report_training"},
    # L3: the step and the methods
    {"train_step", "accumulation", "methods", "methods.base", "methods.fs4", "methods.dino",
     "methods.alignseg", "methods.alignseg_fit", "methods.scribble", "methods.fs4_fit"},
    # L4: what runs
    {"run", "token_cache", "watch", "train", "evaluator", "eval_fits", "eval_scores",
     "token_probes", "evaluate", "program_cost", "dry_run", "segmenter",
     "standalone", "predictions", "predict_loop",
     "viewer", "viewer.gallery", "viewer.server", "viewer.page"},
    # L5: commands
    {"main", "predict", "export", "view", "models.features", "models.weights", "evaluation.score",
     "data.prepare", "clustering.choose_k"},
)
LAYER_OF = {module: level for level, modules in enumerate(LAYERS) for module in modules}

MAX_LINES = {"main": 80, "train": 300, "train_step": 100}
MAX_LINES_OF_ANY, MAX_LINES_OF_A_LOSS = 400, 40


def modules():
    """{dotted name below fs4_jax: path} of every Python file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path, known):
    """Modules below fs4_jax that a file imports, wherever in the file; with their line."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from package import name`: the module of that name if there is one.
            base = node.module or ""
            names = [f"{base}.{alias.name}" if inside(f"{base}.{alias.name}") in known else base
                     for alias in node.names]
        else:
            continue
        for name in names:
            yield inside(name), name, node


def inside(name):
    """The name below fs4_jax; None for another package."""
    head, _, rest = name.partition(".")
    return rest if head == "fs4_jax" else None


def report_imports_that_point_up(layer_of, found):
    """Lines such as "losses.kernel (L1) imports train (L4), line 7"."""
    wrong = []
    for module, path in found.items():
        for target, _, node in imports(path, found):
            if target is not None and layer_of[target] > layer_of[module]:
                wrong.append(f"{module} (L{layer_of[module]}) imports {target} "
                             f"(L{layer_of[target]}), line {node.lineno}")
    return wrong


class LayersTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        self.modules = modules()

    def test_every_file_has_its_layer(self):
        lost = [f"fs4_jax/{path.relative_to(PACKAGE)}" for module, path in self.modules.items()
                if module not in LAYER_OF]
        self.assertEmpty(lost, f"add {', '.join(lost)} to its layer in LAYERS of "
                         "tests/layers_test.py (L0 pure functions ... L5 commands)")
        self.assertLen(LAYER_OF, sum(map(len, LAYERS)), "a module stands in two layers")

    def test_no_import_points_up(self):
        wrong = report_imports_that_point_up(LAYER_OF, self.modules)
        self.assertEmpty(wrong, "an import may only point down or sideways:\n" + "\n".join(wrong))

    def test_the_parser_sees_every_form_of_import(self):
        """On the real files with the layers turned over: nearly every import then points up."""
        wrong = "\n".join(report_imports_that_point_up(
            {module: -level for module, level in LAYER_OF.items()}, self.modules))
        for line in ("train (L-4) imports checkpoint (L-2)",               # from a.b import C
                     "evaluate (L-4) imports config (L0)",                 # from a import b as c
                     "main (L-5) imports train (L-4)",                     # inside a function
                     "models.prototypes (L-1) imports clustering.kmeans (L0)"):
            self.assertIn(line, wrong)

    def test_no_relative_imports(self):
        for module, path in self.modules.items():
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    self.assertEqual(node.level, 0, f"{module}, line {node.lineno}: write "
                                     "`from fs4_jax... import`, the layers are read from it")

    def test_orbax_is_imported_by_checkpoint_alone(self):
        users = {module for module, path in self.modules.items()
                 for _, name, _ in imports(path, self.modules) if name.split(".")[0] == "orbax"}
        self.assertEqual(users, {"checkpoint"})

    def test_no_torch_and_no_tensorflow(self):
        for module, path in self.modules.items():
            for _, name, node in imports(path, self.modules):
                self.assertNotIn(name.split(".")[0], ("torch", "torchvision", "tensorflow"),
                                 f"{module}, line {node.lineno}")

    def test_files_are_short(self):
        for module, path in self.modules.items():
            limit = MAX_LINES.get(module, MAX_LINES_OF_ANY)
            length = len(path.read_text().splitlines())
            self.assertLessEqual(length, limit, f"{path.name}: one idea a file, split it")

    def test_losses_are_short(self):
        for module, path in self.modules.items():
            if module.startswith("losses."):
                for node in ast.walk(ast.parse(path.read_text())):
                    if isinstance(node, ast.FunctionDef):
                        length = node.end_lineno - node.lineno + 1
                        self.assertLessEqual(length, MAX_LINES_OF_A_LOSS, f"{module}.{node.name}")

    def test_nothing_is_called_utils(self):
        vague = [module for module in self.modules
                 if module.split(".")[-1] in ("utils", "util", "helpers", "misc", "common")]
        self.assertEmpty(vague, "name a file by what is in it")


if __name__ == "__main__":
    absltest.main()
