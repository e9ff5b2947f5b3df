"""All studies by the kind of a recipe's [study], and all measurements of a run by name."""

from collections.abc import Callable
from typing import Any

from plusx.study import (
    ablation,
    attention,
    convergence,
    degradation,
    generalisation,
    gradients,
    lesion,
    paths,
    remedies,
    responses,
    skips,
    surface,
    thousand,
    three_tables,
    transfer,
)
from plusx.study.experiment import Experiment


EXPERIMENTS: dict[str, Experiment[Any]] = {
    "degradation": degradation.DEGRADATION,
    "skips": skips.SKIPS,
    "gradients": gradients.GRADIENTS,
    "responses": responses.RESPONSES,
    "convergence": convergence.CONVERGENCE,
    "generalisation": generalisation.GENERALISATION,
    "ablation": ablation.ABLATION,
    "lesion": lesion.LESION,
    "paths": paths.PATHS,
    "surface": surface.SURFACE,
    "thousand": thousand.THOUSAND,
    "tables": three_tables.TABLES,
    "transfer": transfer.TRANSFER,
    "attention": attention.ATTENTION,
    "remedies": remedies.REMEDIES,
}

# (recipe, folder, *settings) -> JSON
MEASURES: dict[str, Callable[..., Any]] = {
    "gradients": gradients.measure_gradients,
    "identity": gradients.measure_identity,
    "responses": responses.measure_responses,
    "lesion": lesion.measure_lesion,
    "paths": paths.measure_paths,
    "surface": surface.measure_surface,
    "thousand": thousand.measure_step,
}
