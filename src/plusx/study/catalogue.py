"""All studies by the kind of a recipe's [study], and all measurements of a run by name."""

from collections.abc import Callable
from typing import Any

from plusx.study import gradients, lesion, paths, responses, surface, thousand
from plusx.study.ablation import ABLATION
from plusx.study.convergence import CONVERGENCE
from plusx.study.degradation import DEGRADATION
from plusx.study.experiment import Experiment
from plusx.study.generalisation import GENERALISATION
from plusx.study.skips import SKIPS
from plusx.study.three_tables import TABLES
from plusx.study.transfer import TRANSFER


EXPERIMENTS: dict[str, Experiment] = {
    "degradation": DEGRADATION,
    "skips": SKIPS,
    "gradients": gradients.GRADIENTS,
    "responses": responses.RESPONSES,
    "convergence": CONVERGENCE,
    "generalisation": GENERALISATION,
    "ablation": ABLATION,
    "lesion": lesion.LESION,
    "paths": paths.PATHS,
    "surface": surface.SURFACE,
    "thousand": thousand.THOUSAND,
    "tables": TABLES,
    "transfer": TRANSFER,
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
