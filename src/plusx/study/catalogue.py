"""All studies by the kind of a recipe's [study], and all measurements of a run by name."""

from collections.abc import Callable
from typing import Any

from plusx.study import (
    attention,
    gradients,
    lesion,
    paths,
    remedies,
    responses,
    surface,
    three_tables,
)
from plusx.study import training_studies as training
from plusx.study.experiment import Experiment


EXPERIMENTS: dict[str, Experiment[Any]] = {
    "degradation": training.DEGRADATION,
    "skips": training.SKIPS,
    "gradients": gradients.GRADIENTS,
    "responses": responses.RESPONSES,
    "convergence": training.CONVERGENCE,
    "generalisation": training.GENERALISATION,
    "ablation": training.ABLATION,
    "lesion": lesion.LESION,
    "paths": paths.PATHS,
    "surface": surface.SURFACE,
    "thousand": gradients.THOUSAND,
    "tables": three_tables.TABLES,
    "transfer": training.TRANSFER,
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
    "thousand": gradients.measure_step,
}
