"""Pictures of what is inside of trained models: tokens, groups, attention, prototypes."""

import jax
import numpy as np
from picture_parts import (
    COLOURS,
    SEEN,
    SIDE,
    UNNAMED,
    blocks,
    grey,
    images_of,
    painted,
    save,
    scenes_of,
    segmenter,
)

from fs4_jax.checkpoint import Checkpoints
from fs4_jax.data.scenes import CLASS_NAMES
from fs4_jax.evaluation.pictures import colour_labels, colour_tokens, contact_sheet, palette
from fs4_jax.models import make_encoder, normalize_images
from fs4_jax.models.foreground import foreground_mask
from fs4_jax.run import encoder_of_workdir, restore_inference, trained_run


def encoders(workdirs):
    images = normalize_images(images_of())
    encoder, trained = encoder_of_workdir(workdirs.encoder)
    random = make_encoder("mu/8", image_size=SIDE)
    untrained = random.init(jax.random.key(0), images)["params"]
    looks = [colour_tokens(model.apply({"params": params}, images)["patch_tokens"])
             for model, params in ((random, untrained), (encoder, trained))]
    tiles = [("", row) for row in zip(images_of(), *looks, strict=True)]
    save("encoders.png", contact_sheet(tiles, headings=("picture", "random weights", "trained"),
                                       picture_width=110, across=2))


def fs4(workdirs):
    """Tokens, CAE, PGG's groups; of scenes of which two and two are in one group as a whole."""
    run = trained_run(workdirs.demo)
    with Checkpoints(workdirs.demo, writes=False) as checkpoints:
        state, _ = checkpoints.restore(run.abstract_state())
    method = run.method
    params = method.inference_params(state.params, state.teacher)

    @jax.jit
    def look(images):
        seen = method._look_at(params, normalize_images(images))
        groups = method._cell_labels(seen, state.extra["centroids"])
        return (seen["patch_tokens"], method._head(params, seen, pyramid=False)["embedding"],
                {level: labels.argmax(-1) for level, labels in groups.items()})

    some = tuple(range(48))
    tokens, embedding, groups = jax.device_get(look(images_of(some)))
    whole = groups["1"].reshape(-1)
    largest = np.argsort(-np.bincount(whole), kind="stable")[:2]
    chosen = [int(i) for group in largest for i in np.flatnonzero(whole == group)[:2]]
    segment = segmenter(workdirs.demo)
    ids = segment.classes().ids
    tokens, embedding = colour_tokens(tokens), colour_tokens(embedding)
    kinds = palette(max(method.pyramid.values()))
    tiles = []
    for i in chosen:
        one = scenes_of(some)[i]
        cells = [blocks(kinds[groups[level][i]]) for level in ("1", "2", "4")]
        tiles.append(("", [one["image"], blocks(tokens[i]), blocks(embedding[i]), *cells,
                           painted(ids[segment(one["image"])]), painted(one["label"])]))
    save("fs4.png", contact_sheet(tiles, names=CLASS_NAMES, palette=COLOURS, picture_width=SIDE,
                                  headings=("picture", "tokens f", "embedding e", "groups, 1 x 1",
                                            "2 x 2", "4 x 4", "prediction", "truth")))


def alignseg(workdirs):
    """Attention, foreground, the cosine to each adapted prototype, segments."""
    run, images = trained_run(workdirs.alignseg), images_of(SEEN[:4])
    params, _ = restore_inference(run, workdirs.alignseg)

    @jax.jit
    def look(images):
        seen = run.method.encoder.apply({"params": params["encoder"]}, normalize_images(images),
                                        return_attention=True)
        return (seen["attention"].mean(1), foreground_mask(seen["attention"]),
                run.method.predict(params, images)["segments"])

    attention, foreground, cosines = jax.device_get(look(images))
    number, tiles = cosines.shape[-1], []
    colours = UNNAMED[:number]
    for i, image in enumerate(images):
        kept = np.where(blocks(foreground[i])[..., None], image, image // 5)
        each = [grey(cosines[i, ..., k], cosines[i].min(), cosines[i].max())
                for k in range(number)]
        tiles.append(("", [image, grey(attention[i], 0, attention[i].max()), kept, *each,
                           blocks(colours[cosines[i].argmax(-1)])]))
    save("alignseg.png", contact_sheet(
        tiles, names=[f"prototype {k + 1}" for k in range(number)], palette=colours,
        headings=("picture", "attention", "foreground", *(
            f"to prototype {k + 1}" for k in range(number)), "segments"), picture_width=SIDE))


def glossary(workdirs):
    """One image's way to a mask, a term a picture."""
    segment, tiles = segmenter(workdirs.demo), []
    ids, chosen = segment.classes().ids, SEEN[1:4]
    outs = [segment.outputs(image) for image in images_of(chosen)]
    tokens, embedding = (colour_tokens(np.stack([out[name] for out in outs]))
                         for name in ("patch_tokens", "embedding"))
    for i, (one, out) in enumerate(zip(scenes_of(chosen), outs, strict=True)):
        patches = one["image"].copy()
        patches[::8], patches[:, ::8] = 255, 255
        logits = out["logits"] / segment.run.method.temperature
        assignment = np.exp(logits - logits.max(-1, keepdims=True))
        assignment /= assignment.sum(-1, keepdims=True)
        clusters = segment(one["image"])
        largest = np.bincount(clusters.reshape(-1)).argmax()
        tiles.append(("", [
            one["image"], patches, blocks(tokens[i]), blocks(embedding[i]),
            grey(assignment[..., largest], 0, 1),
            colour_labels(clusters, UNNAMED),
            painted(ids[clusters]), painted(one["label"])]))
    save("glossary.png", contact_sheet(
        tiles, names=CLASS_NAMES, palette=COLOURS, picture_width=SIDE,
        headings=("image", "patches", "tokens", "CAE", "assignment", "clusters", "classes",
                  "truth")))
