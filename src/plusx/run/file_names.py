"""The names of the files in a run's folder."""

RECIPE = "recipe.toml"
ENVIRONMENT = "environment.json"
DATA = "data.json"
LOG = "log.jsonl"
TIMING = "timing.jsonl"
RESULT = "result.json"  # of a finished run
WEIGHTS = "model.safetensors"  # of a finished run
TEST_USES = "test_uses.jsonl"
