"""Files of trained encoders: `python -m fs4_jax.models.weights convert --input=F --output=G`.

Reads what `load_encoder` reads (.safetensors, .npz and, where torch is installed, .pth and .pt of
DINO, iBOT, MAE, MoCo-v3, MSN, DINOv2 and DINOv3), says what it found and writes the encoder alone:
float32 .safetensors or .npz, with its architecture and its origin in the metadata. With
`--names=huggingface` under the names that transformers loads. `--input=WORKDIR` takes the encoder
that a run has trained.
"""

import dataclasses
import hashlib
import pathlib

from absl import app, flags

# Whatever needs jax is imported where it is used, so that --help answers at once.
from fs4_jax.errors import explained
from fs4_jax.models.position import RESIZES
from fs4_jax.models.weight_files import WeightsError
from fs4_jax.models.weight_names import NAMES


def main(argv):
    if argv[1:] != ["convert"]:
        raise app.UsageError("write: python -m fs4_jax.models.weights convert --input=FILE "
                             "--output=FILE.safetensors")
    args = flags.FLAGS
    with explained():
        for line in convert(args.input, args.output, names=args.names, position=args.position,
                            allow_supervised=args.allow_supervised):
            print(line)


def convert(source, target, *, names="official", position=None, allow_supervised=False):
    """Reads an encoder in any of the known forms and writes it in one.

    Args:
      source: file, or the workdir of a run. target: .safetensors or .npz, replaced if there.
      names: "official" or "huggingface". position, allow_supervised: as in `load_encoder`.

    Returns:
      What was found and written, a list of lines.

    Raises:
      WeightsError: as `load_encoder`; source and target are one file.
      ConfigError: a workdir without a checkpoint.
    """
    from fs4_jax.models.encoder_files import export_encoder, find_encoder
    source, target = pathlib.Path(source), pathlib.Path(target)
    if source.resolve() == target.resolve():
        raise WeightsError(f"--output={target} is the input itself: choose another file")
    if not target.resolve().parent.is_dir():
        raise WeightsError(f"--output={target}: there is no folder {target.resolve().parent}")
    if target.suffix not in (".safetensors", ".npz"):
        raise WeightsError(f"--output={target}: weights are written as .safetensors or .npz")
    if source.is_dir():
        return _convert_workdir(source, target, names)
    with find_encoder(source, position=position, allow_supervised=allow_supervised) as found:
        lines = _report(found)
        params = found.params(found.architecture.depth)
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    arch = found.architecture
    family = "supervised" if found.listing.classifier else arch.family
    export_encoder(params, target, model=arch.model(), names=names, family=arch.family, metadata={
        "family": family, "source": source.name, "source_sha256": digest})
    return [*lines, f"wrote {target} ({names} names, float32)"]


def _convert_workdir(workdir, target, names):
    from fs4_jax.models.encoder_files import export_encoder
    from fs4_jax.run import encoder_of_workdir
    model, params = encoder_of_workdir(workdir)
    blocks = model.block or model.depth
    export_encoder(params, target, model=dataclasses.replace(model, depth=blocks, block=None),
                   names=names, metadata={"source": workdir.resolve().name})
    return [f"{workdir}: the encoder of its newest checkpoint, width {model.width}, {blocks} "
            f"blocks, patch {model.patch}", f"wrote {target} ({names} names, float32)"]


def _report(found):
    arch, listing = found.architecture, found.listing
    registers = f", {arch.num_registers} registers" if arch.num_registers else ""
    stored = "rotary positions" if arch.position == "rope" else (
        f"positions {arch.pos_grid[0]}x{arch.pos_grid[1]}, resized {arch.position}")
    lines = [f"{found.file.path}: {arch.family}, ViT-{arch.variant}{registers}, {stored}, "
             f"{listing.naming.name} names"]
    if listing.other_roles:
        others = ", ".join(role or "one without a prefix" for role in listing.other_roles)
        lines.append(f"took the {listing.role}; also in the file: {others}")
    if listing.dropped:
        lines.append("left out: " + ", ".join(
            f"{what} ({len(names)})" for what, names in listing.dropped.items()))
    if listing.classifier:
        lines.append(f"left out the classifier ({', '.join(listing.classifier.values())}): this "
                     f"encoder has seen labels")
    return lines


def define_flags():
    """The command's own: several commands may be imported into one process."""
    flags.DEFINE_string("input", None, "File of weights to read, or the workdir of a run.")
    flags.DEFINE_string("output", None, "File to write, .safetensors or .npz.")
    flags.DEFINE_enum("names", "official", NAMES, "Tensor names to write.")
    flags.DEFINE_enum(
        "position", None, RESIZES, "How positions are resized, where it should not be what the "
        "file's family does (a plain file can not tell MSN from DINO: give --position=bicubic).")
    flags.DEFINE_boolean(
        "allow_supervised", False, "Take a file with a classifier, whose encoder has seen labels.")


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["input", "output"])
    app.run(main)
