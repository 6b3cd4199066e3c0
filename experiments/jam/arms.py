"""Every arm of the experiments: the recipe it trains by, what it changes in it, and its seeds.

PARENTS stands for the folder of the family jam-tiny, PREPARED for what `run.py` trains first.
"""

from dataclasses import dataclass

ONE, THREE = (0,), (0, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One column of a table."""

    changes: tuple[str, ...]
    recipe: str = "continued.yaml"
    seeds: tuple[int, ...] = ONE


def _fuse(text: str = "PARENTS/text_parent", image: str = "PARENTS/image_parent", **options: object) -> Arm:
    """A fusion of two parents; a double underscore in a name is a dot."""
    return Arm(
        changes=(
            f"objective.fuse.text_model={text}/model",
            f"objective.fuse.image_model={image}/model",
            *(f"objective.fuse.fusion.{key.replace('__', '.')}={value}" for key, value in options.items()),
        )
    )


def _cross(**options: object) -> Arm:
    return _fuse(method="cross", **{f"cross__{key}": value for key, value in options.items()})


def _width(**options: object) -> Arm:
    return _fuse(method="width", **{f"width__{key}": value for key, value in options.items()})


def _uniform(
    text: str = "PARENTS/text_parent", image: str = "PARENTS/image_parent", **options: object
) -> Arm:
    return _fuse(
        text, image, method="uniform", **{f"uniform__{key}": value for key, value in options.items()}
    )


def _seeded(arm: Arm) -> Arm:
    return Arm(changes=arm.changes, recipe=arm.recipe, seeds=THREE)


def _untrained_cross() -> Arm:
    return _fuse("PREPARED/untrained_text", "PREPARED/untrained_image", method="cross")


ARMS: dict[str, Arm] = {
    # C1, the main table. Uniform with all weight on one parent is that parent, trained on.
    "cross": _seeded(_cross()),
    "width": _seeded(_width(scale=0.5)),
    "uniform": _seeded(_uniform()),
    "jam-x": _seeded(_cross(text_skips_images="true")),
    "two towers, no cross blocks": _seeded(_cross(every=0)),
    "image parent, trained on": _seeded(_uniform(alpha=0)),
    "text parent, trained on": _seeded(_uniform(alpha=1)),
    "from scratch, size of a parent": _seeded(
        _uniform("PREPARED/untrained_text", "PREPARED/untrained_image", alpha=0)
    ),
    "from scratch, size of cross": _seeded(_untrained_cross()),
    # C2: what is kept at step 0, and after.
    "cross, shared table, half head, random blocks": _seeded(
        _cross(embeddings="shared", head="half", gating="random")
    ),
    "cross, shared table": _cross(embeddings="shared"),
    "cross, mapped table": _cross(embeddings="mapped"),
    "cross, frozen text tower": Arm(changes=(*_cross().changes, "objective.text_tower_lr_scale=0")),
    # C3: how often the towers meet; parents have 6 layers. `cross` is every 2 from zero.
    "every 1, zero": _cross(every=1),
    "every 3, zero": _cross(every=3),
    "every 1, random": _cross(every=1, gating="random"),
    "every 2, random": _cross(every=2, gating="random"),
    "every 3, random": _cross(every=3, gating="random"),
    "every 1, random, half width": _cross(every=1, gating="random", heads=3, ffn_size=256),
    # C4: what stands beside the parents in Width. `width` is copy_row at half scale.
    "width copy_row": _width(off_diagonal="copy_row"),
    "width copy_col": _width(off_diagonal="copy_col"),
    "width avg": _width(off_diagonal="avg"),
    "width zero": _width(off_diagonal="zero"),
    "width noise": _width(off_diagonal="noise"),
    "width zero, grouped norm": _width(off_diagonal="zero", norm="grouped"),
    # C5: averaging parents that grew apart, and parents that have an ancestor.
    "uniform, rows by modality": _uniform(embedding_rows="by_modality"),
    "uniform, common ancestor": _uniform("PREPARED/branch_text", "PREPARED/branch_image"),
    "ancestor, trained on": _uniform("PREPARED/ancestor", "PREPARED/ancestor", alpha=0),
    # C6: pairs among the instructions.
    **{
        f"instruct, {share} % pairs": Arm(
            recipe="instruct.yaml",
            changes=(
                "objective.model=PARENTS/fused/model",
                f"objective.phases.0.sources.0.weight={1 - share / 100}",
                f"objective.phases.0.sources.1.weight={max(share / 100, 1e-9)}",
            ),
        )
        for share in (0, 10, 30, 50)
    },
}

PREPARED: dict[str, Arm] = {
    "untrained_text": Arm(recipe="untrained.yaml", changes=("seed=11",)),
    "untrained_image": Arm(recipe="untrained.yaml", changes=("seed=12",)),
    "ancestor": Arm(recipe="ancestor.yaml", changes=()),
    "branch_text": Arm(
        recipe="ancestor.yaml",
        changes=(
            "objective.parent=null",
            "objective.model=PREPARED/ancestor/model",
            "objective.phases.0.sources.1.weight=1e-9",
            "seed=1",
        ),
    ),
    "branch_image": Arm(
        recipe="ancestor.yaml",
        changes=(
            "objective.parent=null",
            "objective.model=PREPARED/ancestor/model",
            "objective.phases.0.sources.0.weight=1e-9",
            "seed=2",
        ),
    ),
}
"""Runs that arms start from, in order."""
