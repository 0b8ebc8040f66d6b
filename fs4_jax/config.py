"""Settings: every experiment's defaults, and how a workdir remembers them."""

import json
import pathlib
import tempfile

import ml_collections
from ml_collections.config_dict import FieldReference

from fs4_jax.whole_files import write_whole

# config.data.name: its label sets, config.data.label_set, the default first.
DATA_SETS = {
    "folder": (),
    "scenes": ("classes", "objects"),       # objects: an image's things one by one
    "cocostuff": ("27", "15", "171", "81", "182"),
    # aug: trains on the list trainaug, not train; scribbles: and on strokes, not masks
    # animals: background, five animals and people, the others ignored; trains on train
    "voc": ("21", "21-aug", "21-scribbles", "21-aug-scribbles", "animals"),
    "cityscapes": ("27", "19"),
    "potsdam": ("3",),
    "camvid": ("11",),
}


class ConfigError(ValueError):
    """A setting that can not work; the message names the key and what to do."""


def default_config():
    """The keys every experiment has, with the values of `configs/folder.py`."""
    c = ml_collections.ConfigDict
    return c(dict(
        method="fs4",
        seed=0,
        total_steps=1000,
        batch_size=16,            # over all devices and processes
        accumulate_steps=1,       # micro-batches of a step, one after the other: less memory
        num_clusters=27,          # K: how many classes to look for
        dtype="float32",          # compute: float32 | bfloat16; parameters stay float32
        log_every=10,
        mesh=c(dict(data=-1, fsdp=1)),     # -1: whatever devices are left
        # (regex over parameter paths, "replicate" | "fsdp"): the first that matches wins
        sharding=(("kernel$", "fsdp"), (".*", "replicate")),
        data=c(dict(
            name="folder",        # see DATA_SETS
            # holds {train,val}/{images,labels}, or the data set's own tree, or what
            # fs4_jax.data.prepare built of it
            root="",
            label_set="",         # see DATA_SETS; "": its first
            images="", labels="", eval_images="", eval_labels="",
            # training crops: one side, or (height, width)
            image_size=FieldReference(224, field_type=object),
            # images are scored at: one side (the aspect ratio is kept), (height, width), or
            # 0: image_size
            eval_size=FieldReference(0, field_type=object),
            class_names=(), num_classes=0, ignore_ids=(),
            num_workers=0,        # decoding processes; 0: threads
            num_train=1024, num_eval=256, scenes_seed=0,       # scenes only
            # where view 1 lies: random | five (a quarter of the image: a corner or the middle)
            crops="random",
            crop_scale=(0.3, 1.0), view2_scale=(0.5, 1.0), flip=0.5,
            brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.1, blur=0.3,
        )),
        encoder=c(dict(
            variant="S/16",       # {mu,Ti,S,B,L,H,g,S+,H+}/{4,8,14,16}
            weights="",           # a file, or the workdir of a run (dino's); "": random weights
            frozen=False,
            # frozen only: this many draws of each image's views, encoded once; 0: every step
            cached_views=0, cache_dir="",      # "": tokens/ in the workdir
            block=0,              # tokens after this many blocks; 0: all
            drop_path=0.0, layer_scale=0.0,
            remat="none",         # blocks: computed again in the backward pass, for less memory
        )),
        optimizer=c(dict(
            learning_rate=1e-3, warmup_steps=50, weight_decay=0.04,
            final_weight_decay=-1.0,       # reached along a cosine; below 0: constant
            halve_every=0,        # steps after which the rate halves; 0: a cosine to zero
            clip_norm=1.0, beta2=0.99,
            encoder_scale=1.0,    # learning rate of the encoder, relative
            layer_decay=1.0,      # of each earlier block, relative to the next (pretrained: 0.75)
        )),
        checkpoint=c(dict(every=200, keep=2)),
        # A loss or gradient that is no number: stop | skip (that step changes nothing) | rollback
        # (the newest checkpoint, and on with the data behind the bad batch). most: steps skipped in
        # a row, or returns to one checkpoint, before the run stops all the same.
        nonfinite=c(dict(policy="stop", most=10)),
        hang_seconds=1800,        # without a step: the run says where it hangs and ends; 0: never
        eval=c(dict(every=0, protocol="hungarian", batch_size=16, floors=True, pictures=12,
                    also=(),              # protocols that are scored besides
                    failures=6,           # pictures of the images with the lowest accuracy
                    floor_images=256,     # of the training split, that floors are fitted to
                    # What predicts is the teacher, the student's running mean, where the method
                    # trains one (fs4.teacher=frozen: the student). Protocols of whole images:
                    flip=False,           # the mean with the mirrored image's embedding
                    scales=(),            # the mean over scales, (0.75, 1.0, 1.25) say; (): one
                    crf=False,            # a dense CRF refines the masks, STEGO's settings
                    matching="",          # an eval.json whose match is used; "": found anew
                    probe_steps=500,      # of a linear probe, batches of batch_size
                    probes=False,         # score tokens by a probe and neighbours too, with labels
                    probe_images=256,     # of each split, for that
                    at_start=False,       # evaluate before the first step too
                    bug_compatible="")),  # a published bug, to compare: stego-extra-clusters
        profile=c(dict(steps=())),         # (first, last) steps to trace
        fs4=c(dict(
            student_temperature=0.1,
            teacher="ema",        # ema | frozen (its encoder stays as it started)
            teacher_momentum=0.99,
            overcluster=1,        # fine clusters for each class; they merge by average linkage
            # of pictures of things: one class is the fine clusters that the class token looks at
            # less than at others
            background=False,
            fit_images=512,       # images that first centroids, PCA and prototypes are fitted on
            pixel=c(dict(weight=1.0, tokens=0)),                   # 0: every token
            # prior: equal shares of the clusters | running: the shares they have had | fitted:
            # those that they began with
            sinkhorn=c(dict(enabled=True, epsilon=0.05, num_iters=3, marginal_relaxation=1.0,
                            prior="equal")),
            # First clusters: a mixture with sizes of their own and, by PGG's guides, those of each
            # kind of image; without it k-means, all clusters equal. For tokens of a trained
            # encoder: a random one's sizes mean nothing.
            mixture=c(dict(enabled=False, num_iters=15)),
            pgg=c(dict(
                enabled=True, weight=0.5,
                form="heads",     # heads, that predict a cell's group | pooled: the assignment does
                levels=(1, 2, 4),                      # cells on a side
                guides=(),        # levels whose groups guide the fit of the first clusters
                # of all levels, or (of each, ...); 0: three for each class
                num_groups=FieldReference(0, field_type=object),
                shared=False,     # the same groups for all levels
                labels="nearest",                      # nearest | balanced, over the batch's cells
                smoothing=0.0,    # > 0: a cell belongs to groups by exp(-distance^2 / smoothing)
            )),
            # form: bilateral | attention (the bilateral kernel is then its bias)
            # dilations: tokens from one place of the window to the next, a window for each;
            # position_sigma counts these steps
            cae=c(dict(enabled=True, width=64, hidden=256, form="bilateral", radius=2,
                       dilations=(1,), position_sigma=1.5, colour_sigma=0.5)),
            kernel=c(dict(enabled=True, weight=0.1, radius=2, position_sigma=2.0,
                          colour_sigma=0.5, feature_sigma=0.7)),
            # rounds: every so many steps (0: never) PGG is fitted anew, at most `rounds` times
            # (0: no limit), from the groups there are (previous) or from nothing (fresh)
            bootstrap=c(dict(every=0, rounds=0, start="previous")),
        )),
        alignseg=c(dict(
            num_prototypes=5,     # segments of an image; num_clusters are classes of the data set
            num_heads=3, hidden=768, num_layers=1,
            bug_compatible=False,          # layers that do not stack, as released
            weights="",           # a file of load_alignseg, whose decoder training starts from
            # the global crop (its share of the area), and local ones, which have more than
            # `intersection` of the area in common with it; all of data.image_size
            global_scale=(0.5, 1.0), num_local=2, local_scale=(0.05, 0.25), intersection=0.05,
            augment=False,        # data.flip, data.brightness ...: drawn for each crop
            mass=0.6,             # of the attention, that the foreground holds
            released_pairing=False,        # crops beside other images' global crops, as released
            # reduction: mean over foreground pairs | sum, as released (its weight: 0.15)
            correlation=c(dict(weight=1e4, pressure=0.11, reduction="mean")),
            contrast=c(dict(weight=1.0, temperature=1.0)),
            # ours: segments as a mixture of the image's tokens. weight: of its likelihood; rounds:
            # in each image, after the decoder; attention: the power of the class token's that a
            # token counts for, 0: all alike; place: of (x, y) in -0.5 .. 0.5 beside a token of
            # length 1, in the rounds; whitening: tokens are measured by their covariance to minus
            # this power, 0: as they are; consistent: by how much two crops' views of one place
            # differ, in place of that; fitted: prototypes start at centroids of tokens
            mixture=c(dict(weight=0.0, temperature=0.05, rounds=0, attention=1.0, place=0.0,
                           whitening=0.0, consistent=False, fitted=False)),
            merge=1.0,            # cosine of adapted prototypes from which two segments are one
            fit_images=512,       # whose segments become the classes
            signature="prototype",         # what of a segment is clustered: prototype | tokens
        )),
        dino=c(dict(
            num_prototypes=4096, hidden=2048, bottleneck=256,
            num_local=6, local_size=96, local_scale=(0.05, 0.4), solarize=0.2,
            student_temperature=0.1,
            warmup_teacher_temperature=0.04, teacher_temperature=0.07,
            warmup_temperature_steps=0,
            centering="sinkhorn",          # sinkhorn (DINOv2's) | center (DINO's)
            sinkhorn_iters=3, center_momentum=0.9,
            teacher_momentum=0.992,        # at the start; 1 at the end
            freeze_last_layer_steps=0,
            cls=c(dict(weight=1.0)),
            patch_prototypes=4096,         # of the patches' own head; 0: they share the other
            mask=c(dict(ratio=(0.1, 0.5), probability=0.5)),       # of the student's global crops
            ibot=c(dict(weight=1.0)),
            dense=c(dict(weight=0.0, marginal_relaxation=1.0)),
            texture=c(dict(weight=0.0)),
            koleo=c(dict(weight=0.1)),
        )),
        scribble=c(dict(
            # given: the masks are what was drawn (full masks: full supervision) | scribbles |
            # points: drawn from the masks; ratio: of a scribble's length; width: of one, (least,
            # most) pixels
            annotation="given", ratio=1.0, width=(1, 3), seed=0,
            teacher_momentum=0.99,         # of the running mean, which predicts
            # levels: blocks whose tokens are read, (): three, evenly spread. upsample: cells on a
            # token's side. detail: width of what is seen of the image itself, 0: nothing
            decoder=c(dict(levels=(), width=32, detail=16, upsample=4)),
            regularizer=c(dict(
                # none | static: colour and position (GatedCRF) | densecrf | normalized_cut |
                # kernel_cut | dfr: deep features too
                form="dfr", weight=1.0,
                rampup=0.1,                # of the steps, until the weight is reached
                reach="window",            # of static and dfr: window | dense
                # in cells of the logits' grid, and in ImageNet-normalised colour
                radius=5, dilations=(1,), position_sigma=6.0, colour_sigma=0.1,
                position_weight=0.0,       # static: of a second kernel, of position alone
                static_weight=0.0,         # dfr: of the kernel without deep features, added
                # dfr: every pixel agrees with the strokes of its image (at most `number` pixels of
                # them) that deep features tie it to: the consistency head's and, above 0, the last
                # level's tokens, whose kernel is 1/e at a 1 - cosine of token_distance. apart: the
                # kernel's value below which a pixel is left alone
                strokes=c(dict(weight=2.0, number=128, token_distance=0.1, apart=1e-3)),
                # the fully connected kernels; position_sigma: in the longer side; leaf_size: 1 is
                # exact; normalized=False: rloss' own numbers, weights about 1e-9
                dense=c(dict(position_sigma=0.2, colour_sigma=0.26, leaf_size=16,
                             normalized=True)))),
            # the head of the deep features: pairs of so many labelled pixels an image; confident:
            # probability from which the model's own classes count as labels, 0: never
            consistency=c(dict(weight=1.0, width=16, pairs=128, smooth=3.0, confident=0.0)),
        )),
    ))


# What may change between two starts in one workdir: it does not touch the parameters.
_FREE_KEYS = ("checkpoint.", "nonfinite.", "hang_seconds", "eval.", "log_every", "profile.",
              "data.eval_", "data.num_workers", "data.num_eval", "data.class_names",
              "data.num_classes", "mesh.", "sharding", "encoder.remat", "encoder.cache_dir")


def flatten(config, prefix=""):
    """{"data.images": ..., ...} of a nested mapping."""
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _plain(config):
    """A config as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(config.to_dict()))


def check_workdir(workdir):
    """Raises ConfigError where nothing can be written into a workdir; leaves nothing behind."""
    there = pathlib.Path(workdir).absolute()
    try:
        while not there.exists():        # made later, when all else is known to be well
            there = there.parent
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"0")
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} can not be written: {there}: "
                          f"{error.strerror}") from error


def remember_config(config, workdir, write=True):
    """Writes W/config.json, or checks that W was begun with the same settings.

    write: False only checks, for all processes of a run but one.

    Raises ConfigError that lists the differing keys when the workdir belongs to another run.
    """
    path = pathlib.Path(workdir) / "config.json"
    new = flatten(_plain(config))
    if path.exists():
        # A key that came after the run began: it had what is the default, as in `recall_config`.
        old = flatten(_plain(default_config())) | flatten(json.loads(path.read_text()))
        differing = [key for key in sorted(old.keys() | new.keys())
                     if old.get(key) != new.get(key) and not key.startswith(_FREE_KEYS)]
        if differing:
            lines = "\n".join(f"  config.{k}: there {old.get(k)!r}, now {new.get(k)!r}"
                              for k in differing)
            raise ConfigError(f"{workdir} belongs to a run with other settings:\n{lines}\n"
                              "Give another --workdir, or the same settings to resume it.")
    if not write:
        return
    write_whole(path, json.dumps(_plain(config), indent=2) + "\n")


def recall_config(workdir):
    """The ConfigDict a workdir was trained with; ConfigError where there is none."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise ConfigError(f"--workdir={workdir} holds no config.json: train there first with "
                          "python -m fs4_jax.main --config=... --workdir=...")
    config = default_config()
    config.unlock()
    stored = json.loads(path.read_text())

    def fill(into, values):
        for key, value in values.items():
            if key not in into:
                raise ConfigError(f"{path} holds the key {key!r}, which this version does not know:"
                                  " it was written by another version of fs4_jax")
            if isinstance(value, dict):
                fill(into[key], value)
            else:
                into[key] = _tuples(value)

    fill(config, stored)
    return config


def evaluation_config(trained, given):
    """The config of a trained model, told by `given` where and how to evaluate."""
    if given.data.root:                   # another tree, and not the folder of the training
        trained.data.eval_images = trained.data.eval_labels = ""
    for key in ("root", "label_set", "eval_images", "eval_labels", "eval_size", "class_names",
                "num_classes", "ignore_ids"):
        if given.data[key]:
            trained.data[key] = given.data[key]
    trained.eval, trained.mesh = given.eval, given.mesh
    trained.data.num_workers = given.data.num_workers
    return trained


def _tuples(value):
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
