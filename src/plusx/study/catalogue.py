"""All studies by the kind that a recipe's [study] says, and all that can be looked at in a run."""

from plusx.study import (
    gradient_study,
    lesion_study,
    path_study,
    response_study,
    surface_study,
    thousand_study,
)
from plusx.study.ablation import ABLATION
from plusx.study.convergence import CONVERGENCE
from plusx.study.degradation import DEGRADATION
from plusx.study.generalisation import GENERALISATION
from plusx.study.gradient_study import GRADIENTS
from plusx.study.lesion_study import LESION
from plusx.study.path_study import PATHS
from plusx.study.plan import Look, Study
from plusx.study.response_study import RESPONSES
from plusx.study.skips import SKIPS
from plusx.study.surface_study import SURFACE
from plusx.study.thousand_study import THOUSAND
from plusx.study.three_tables import TABLES
from plusx.study.transfer import TRANSFER
from plusx.study.watch import gradients


STUDIES: dict[str, Study] = {
    "degradation": DEGRADATION,
    "skips": SKIPS,
    "gradients": GRADIENTS,
    "responses": RESPONSES,
    "convergence": CONVERGENCE,
    "generalisation": GENERALISATION,
    "ablation": ABLATION,
    "lesion": LESION,
    "paths": PATHS,
    "surface": SURFACE,
    "thousand": THOUSAND,
    "tables": TABLES,
    "transfer": TRANSFER,
}

LOOKS: dict[str, Look] = {
    "gradients": gradients,
    "identity": gradient_study.identity,
    "responses": response_study.layers,
    "lesion": lesion_study.look,
    "paths": path_study.look,
    "surface": surface_study.look,
    "thousand": thousand_study.look,
}
