"""The search of `plusx tune`: optuna chooses values of a recipe's keys by the validation split.

Every trial is an ordinary run in OUT/trials, trained by the worker processes of `study.workers`.
Only this process writes OUT/study.db, and only while it holds the lock of the folder. After any
interruption the same search resumes: finished trials are kept, and a trial that was running resumes
its run from the last checkpoint. The random numbers of a trial are a function of [tune] seed and
its number, so one job makes the same trials with or without interruptions.
"""

import sqlite3
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from plusx import store
from plusx.errors import MissingLibrary, UserError, counted, printable
from plusx.recipe import Recipe, differences, parse_recipe, to_toml
from plusx.recipe.tuning import Tune
from plusx.report.metrics import METRICS, PERCENT, better
from plusx.report.tune import MIN_TRIALS, tune_page
from plusx.run.distributed import DistributedContext
from plusx.run.training import make_trainer
from plusx.statistics import difference, spread
from plusx.study.progress import LogTail, Progress, RunProgress
from plusx.study.results import read_finished, versions_and_machine
from plusx.study.runner import POLL, STOPPING, default_jobs, refuse_jobs, run_trials
from plusx.study.search_space import default_values, distributions, plain, with_values
from plusx.study.trial import Trial
from plusx.study.workers import Outcome, WorkerPool


if TYPE_CHECKING:
    from optuna.study import Study

DATABASE, JSON, PAGE, BEST = "study.db", "tune.json", "tune.html", "best.toml"
TRIALS, CONFIRMATION = "trials", "confirmation"
NAME = "plusx"  # of the study in the database
ATTEMPTS = 3  # of a trial whose process dies
# keys that may change between two commands of one search: they do not change what a value means
HARMLESS = (
    "checkpoint.",
    "compare.",
    "data.workers",
    "device.threads",
    "study.",
    "tune.confirm",
    "tune.pruner",
    "tune.sampler",
    "tune.seed:",
    "tune.startup_trials",
    "tune.trials",
)
_FILES = (DATABASE, JSON, PAGE, BEST, TRIALS, CONFIRMATION, "recipe.toml", "lock.json")
_RATE_FILES = ("rate.json", "rate.html")


def require_optuna() -> None:
    """Raise MissingLibrary if optuna is not installed."""
    if find_spec("optuna") is None:
        raise MissingLibrary("plusx tune needs optuna", "tune")


def tune(
    recipe: Recipe,
    out: str | Path,
    *,
    name: str = "recipe",
    trials: int | None = None,
    jobs: int | None = None,
    command: str = "",
    progress: TextIO | None = None,
) -> dict[str, Any]:
    """Search values of the recipe's keys in the folder `out`, and return the content of tune.json.

    name: of the recipe, for messages and the page
    trials: in all, with those of earlier commands; None: that of [tune]
    jobs: runs at a time, each in its own process; None: one for each core; 1 with a GPU
    command: is recorded; progress: the stream for progress; None: standard error
    Raises UserError if the recipe has no [tune] table, its space does not suit the recipe, or `out`
    holds another search; RuntimeError if optuna is missing or no trial finished.
    """
    require_optuna()
    table = recipe.tune
    if table is None:
        raise UserError(
            f"{name} has no table [tune] with a space, for example [tune.space] "
            '"optim.lr" = { low = 1e-3, high = 1.0, log = true }'
        )
    total = table.trials if trials is None else trials
    if total < 1:
        raise UserError(f"--trials {total}: must be at least 1")
    refuse_jobs(jobs)
    out = Path(out)
    recipe = replace(recipe, compare=None, study=None)
    try:
        default = default_values(recipe, table.space)
        _check_seeds(recipe, table)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    refuse_folder(out)
    # checks the recipe; the folder is none of a trial, and nothing is written
    trainer = make_trainer(plain(recipe), out / TRIALS / "default", DistributedContext())
    validation, metric = trainer.sets.validation, trainer.monitor
    if validation is None:
        raise UserError(
            f"{name}: [data] validation = 0: a search needs a validation set, never the test set"
        )
    evaluated = {
        "data": validation.name,
        "split": "validation",
        "count": len(validation),
        "noun": validation.noun,
    }
    del trainer
    stream = progress or sys.stderr
    with store.lock(out), _open_database(out, recipe, metric, default) as study:
        store.write_text(out / "recipe.toml", to_toml(recipe))
        search = Search(study, recipe, table, default, metric, out, stream)
        size = jobs or default_jobs(recipe)
        with WorkerPool(size, out / TRIALS) as pool:
            search.run(pool, total)
        best = search.best()
        write_best(out, recipe, best, name, metric)
        confirmation = None
        if table.confirm and best["number"]:
            confirmation = _confirm(recipe, table, best, metric, out, size, stream)
        rows = search.rows()
        result = {
            "kind": "tune",
            "name": name,
            "metric": metric,
            **evaluated,
            "best": {"trial": best["number"], "value": best["value"], "fields": best["fields"]},
            "default": rows[0],
            "trials": rows,
            "recipe": str(out / BEST),
            "importance": search.importance(),
            "space": {key: _entry(entry) for key, entry in table.space.items()},
            "sampler": table.sampler,
            "pruner": table.pruner.kind,
            "seeds": list(_seeds(recipe, table)),
            "confirmation": confirmation,
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **versions_and_machine(search.folders(best["number"])[0]),
        }
        result = {"finding": finding(result), **result}
        store.write_json(out / JSON, result)
        page = tune_page(result, store.read_bytes(out / BEST).decode("utf-8"))
        store.write_text(out / PAGE, page)
    return result


def refuse_folder(out: Path) -> None:
    """Raise UserError if `out` holds anything else than a search."""
    if not out.exists():
        return
    others = sorted(
        entry.name
        for entry in out.iterdir()
        if entry.name not in (*_FILES, *_RATE_FILES)
        and not entry.name.startswith((".plusx-", f"{DATABASE}-"))
    )
    if others:
        raise UserError(
            f"{out} is not empty and not the folder of a search: "
            f"{', '.join(map(printable, others[:3]))}; choose another one"
        )


def write_best(out: Path, recipe: Recipe, best: Mapping[str, Any], name: str, metric: str) -> None:
    """Write the recipe of the best trial, which `plusx train` takes."""
    value = f"validation {METRICS[metric].title} {METRICS[metric].text(best['value'], decimals=2)}"
    lines = [
        f"# {printable(name)} with the values of trial {best['number']} of plusx tune: {value}.",
        *(f"#   {key} = {value!r}" for key, value in best["fields"].items()),
    ]
    text = to_toml(with_values(recipe, best["fields"]))
    store.write_text(out / BEST, "\n".join([*map(printable, lines), "", text]))


@dataclass
class _Candidate:
    """A trial of the study that is trained: its runs, one for each seed."""

    handle: Any  # optuna.trial.Trial
    fields: dict[str, Any]
    runs: list[Trial]  # the first is running or next
    values: list[float] = field(default_factory=list)  # of the finished runs
    tail: LogTail | None = None  # of the first run
    epochs: int = 0  # of the finished runs
    attempts: int = 0
    pruned: bool = False

    def __str__(self) -> str:
        return f"trial {self.handle.number}"


class Search:
    """The trials of a study: asked from optuna, trained by a pool, reported back."""

    def __init__(
        self,
        study: "Study",
        recipe: Recipe,
        table: Tune,
        default: Mapping[str, Any],
        metric: str,
        out: Path,
        stream: TextIO,
    ) -> None:
        self.study, self.recipe, self.table, self.metric = study, recipe, table, metric
        self.out, self.stream = out, stream
        self.distributions = distributions(table.space, default)
        self.study.pruner = _pruner(table)
        self.running: dict[str, _Candidate] = {}  # by the folder of the run

    def run(self, pool: WorkerPool, total: int) -> None:
        """Train until the study has `total` trials and none is unfinished."""
        waiting = [self._candidate(number) for number in self._unfinished()]
        shown = max(total, self._count())
        display = Progress(self.stream, shown, float(shown))
        display.finished = self._count() - len(waiting)
        display.finished_cost = float(display.finished)
        if display.finished and (waiting or self._count() < total):
            display.print(f"{display.finished} of {total} trials are finished already; resuming")
        try:
            with display:
                while waiting or pool.busy or self._count() < total:
                    while pool.free and (waiting or self._count() < total):
                        self._start(waiting.pop(0) if waiting else self._ask(), pool, display)
                    self._prune(pool)
                    for run, outcome in pool.ended(POLL):
                        candidate = self.running.pop(run.folder)
                        if (again := self._end(candidate, outcome, display)) is not None:
                            waiting.insert(0, again)
                    display.show()
        except BaseException as stop:
            if not isinstance(stop, Exception):  # Ctrl-C or SIGTERM
                print(STOPPING, file=self.stream, flush=True)
            raise

    def _count(self) -> int:
        """The number of trials that were started."""
        return sum(trial.state.name != "WAITING" for trial in self.study.get_trials(deepcopy=False))

    def _unfinished(self) -> list[int]:
        trials = self.study.get_trials(deepcopy=False)
        return [trial.number for trial in trials if trial.state.name == "RUNNING"]

    def _ask(self) -> _Candidate:
        number = self._count()
        self.study.sampler = _sampler(self.table, number)
        return self._candidate(self.study.ask().number)

    def _candidate(self, number: int) -> _Candidate:
        """Return the trial with values for all keys; those that it has already are kept."""
        from optuna.trial import Trial as Handle

        trials = self.study.get_trials(deepcopy=False)
        if any(set(self.distributions) - set(trials[number].params)):
            self.study.sampler = _sampler(self.table, number)
        handle = Handle(self.study, trials[number]._trial_id)
        fields = {}
        for key, distribution in self.distributions.items():
            fields[key] = handle._suggest(key, distribution)
        return _Candidate(handle, fields, trial_runs(self.recipe, self.table, number, fields))

    def _start(self, candidate: _Candidate, pool: WorkerPool, display: Progress) -> None:
        run = candidate.runs[0]
        log = self.out / TRIALS / run.folder / "log.jsonl"
        if candidate.tail is None:
            candidate.tail = LogTail(log)
        self.running[run.folder] = candidate
        pool.start(run)
        if all(entry.name != str(candidate) for entry in display.running):
            recipe = run.recipe
            display.running.append(
                RunProgress(str(candidate), LogTail(log), 1.0, recipe.epochs, recipe.steps)
            )

    def _prune(self, pool: WorkerPool) -> None:
        """Report new evaluations of the running trials, and stop those that the pruner rejects."""
        for candidate in self.running.values():
            if not candidate.pruned and self._observe(candidate):
                candidate.pruned = True
                pool.stop(candidate.runs[0])

    def _observe(self, candidate: _Candidate) -> bool:
        """Report the new evaluations of a trial; return whether the pruner rejects it. The value
        at an epoch is the mean over the seeds so far."""
        assert candidate.tail is not None
        reported = self.study.get_trials(deepcopy=False)[candidate.handle.number]
        last = candidate.runs[0].recipe.epochs
        for line in candidate.tail.lines():
            value = line.get("validation", {}).get(self.metric)
            if value is None or (len(candidate.runs) == 1 and line["epoch"] == last):
                continue
            epoch = candidate.epochs + line["epoch"]
            if epoch not in reported.intermediate_values:
                candidate.handle.report(float(np.mean([*candidate.values, value])), epoch)
            if candidate.handle.should_prune():
                return True
        return False

    def _end(self, candidate: _Candidate, outcome: Outcome, display: Progress) -> _Candidate | None:
        """Report the end of a run; return the trial if it has to be started again."""
        if not candidate.pruned:
            candidate.pruned = self._observe(candidate)
        run = candidate.runs[0]
        if candidate.pruned:
            self._tell(candidate, "PRUNED", "stopped by the pruner")
            display.print(f"{candidate} is stopped: worse than the median of earlier trials")
            self._remove(candidate, display)
            return None
        if outcome.died and candidate.attempts + 1 < ATTEMPTS:
            candidate.attempts += 1
            display.print(f"{candidate}: {outcome.error}; it resumes from its last checkpoint")
            return candidate
        if outcome.error:
            # pruned trials count as bad ones for the sampler, failed trials are ignored
            diverged = outcome.diverged
            reason = f"training diverged: {outcome.error}" if diverged else outcome.error
            self._tell(candidate, "PRUNED" if diverged else "FAIL", reason)
            display.print(f"{candidate} {'diverged' if diverged else 'failed'}: {outcome.error}")
            self._remove(candidate, display)
            return None
        result = store.read_json(self.out / TRIALS / run.folder / "result.json")
        value = result["validation"][self.metric]
        if value is None:
            self._tell(candidate, "FAIL", f"{METRICS[self.metric].title} is undefined")
            display.print(f"{candidate} failed: {METRICS[self.metric].title} is undefined")
            self._remove(candidate, display)
            return None
        candidate.values.append(value)
        candidate.epochs += result["epochs"]
        del candidate.runs[0]
        if candidate.runs:
            candidate.tail = None
            return candidate
        self._tell(candidate, "COMPLETE")
        display.end(str(candidate), "")
        return None

    def _remove(self, candidate: _Candidate, display: Progress) -> None:
        display.running = [run for run in display.running if run.name != str(candidate)]
        display.finished += 1
        display.finished_cost += 1

    def _tell(self, candidate: _Candidate, state: str, reason: str = "") -> None:
        from optuna.trial import TrialState

        if reason:
            candidate.handle.set_user_attr("reason", printable(reason)[:1000])
        values = float(np.mean(candidate.values)) if state == "COMPLETE" else None
        self.study.tell(candidate.handle.number, values, state=TrialState[state])

    def folders(self, number: int) -> list[Path]:
        """Return the run folders of a trial."""
        runs = trial_runs(self.recipe, self.table, number, None)
        return [self.out / TRIALS / run.folder for run in runs]

    def rows(self) -> list[dict[str, Any]]:
        """Return the trials for the result: number, state, value, fields, reason, epochs, seconds.
        The value of a trial that was stopped is that of its last evaluation."""
        rows = []
        for trial in self.study.get_trials(deepcopy=False):
            reason = trial.user_attrs.get("reason", "")
            states = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed"}
            diverged = reason.startswith("training diverged")
            rows.append(
                {
                    "number": trial.number,
                    "state": "diverged" if diverged else states[trial.state.name],
                    "value": trial.value if trial.state.name == "COMPLETE" else None,
                    "fields": dict(trial.params),
                    "reason": reason,
                    **_lengths(self.folders(trial.number)),
                }
            )
        return rows

    def best(self) -> dict[str, Any]:
        """Return the row of the best trial, the first of equally good ones. Raises RuntimeError if
        no trial finished."""
        rows = self.rows()
        complete = [row for row in rows if row["value"] is not None]
        if not complete:
            reasons = "; ".join(f"trial {row['number']}: {row['reason']}" for row in rows[:3])
            raise RuntimeError(f"no trial of {self.out} finished: {reasons}")
        return max(complete, key=lambda row: (better(self.metric, row["value"]), -row["number"]))

    def importance(self) -> dict[str, float]:
        """Return the fraction of the variance that each key explains, by fANOVA (Hutter et al.
        2014) on the finished trials; empty if there are too few."""
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        values = [trial.value for trial in self.study.trials if trial.state.name == "COMPLETE"]
        if len(values) < MIN_TRIALS or len(set(values)) < 2:
            return {}
        importances = get_param_importances(self.study, evaluator=FanovaImportanceEvaluator(seed=0))
        return {key: float(value) for key, value in importances.items()}


def trial_runs(
    recipe: Recipe, table: Tune, number: int, values: Mapping[str, Any] | None
) -> list[Trial]:
    """Return the runs of a trial, one for each seed; None: without its values."""
    trained = plain(recipe) if values is None else with_values(recipe, values)
    seeds = _seeds(recipe, table)
    return [
        Trial(
            name=str(number),
            seed=seed if table.seeds[1:] else None,
            recipe=_one_thread(replace(trained, seed=seed)),
        )
        for seed in seeds
    ]


def finding(result: Mapping[str, Any]) -> str:
    """Return sentences about the best trial, the default, and the confirmation."""
    metric, best, default = METRICS[result["metric"]], result["best"], result["default"]
    count = counted(len(result["trials"]), "trial")
    value = metric.text(best["value"], decimals=2)
    if best["trial"] == 0:
        return f"None of {count} is better than the recipe: validation {metric.title} {value}."
    first = f"Trial {best['trial']} is the best of {count}: validation {metric.title} {value}"
    if default["value"] is None:
        first += "; the recipe's default did not finish"
    else:
        first += f", the recipe's default {metric.text(default['value'], decimals=2)}"
    confirmation = result["confirmation"]
    if confirmation is None:
        return f"{first}. The best of many values is too optimistic: confirm it with other seeds."
    if confirmation["failed"]:
        return f"{first}. Its confirmation failed: {'; '.join(confirmation['failed'])}."
    gap, seeds = confirmation["difference"], counted(len(confirmation["seeds"]), "other seed")
    means = [metric.text(confirmation[who]["mean"], decimals=2) for who in ("best", "default")]
    unit = "points" if metric.unit == PERCENT else metric.unit
    texts = [metric.shown(end, sign="+", decimals=2) for end in gap.values() if end is not None]
    interval = f"{texts[1]} to {texts[2]}" if texts[1:] else "the same with every seed"
    unclear = gap["low"] is not None and gap["low"] <= 0 <= gap["high"]
    return (
        f"{first}. With {seeds} on the same validation {result['noun']}s the best recipe reaches "
        f"{means[0]} and the default {means[1]} ({texts[0]} {unit}, {interval})"
        f"{': it is not shown to be better' if unclear else ''}."
    )


def _confirm(
    recipe: Recipe,
    table: Tune,
    best: Mapping[str, Any],
    metric: str,
    out: Path,
    size: int,
    stream: TextIO,
) -> dict[str, Any]:
    """Train the default and the best recipe with the confirming seeds, and compare them."""
    number = best["number"]
    recipes = {"trial0": plain(recipe), f"trial{number}": with_values(recipe, best["fields"])}
    trials = [
        Trial(name=name, seed=seed, recipe=_one_thread(replace(trained, seed=seed)))
        for name, trained in recipes.items()
        for seed in table.confirm
    ]
    runs = out / CONFIRMATION
    print(
        f"confirmation: default and trial {number} with seeds {', '.join(map(str, table.confirm))}",
        file=stream,
    )
    with WorkerPool(min(size, len(trials)), runs) as pool:
        _, failed = run_trials(pool, trials, runs, stream)
    reasons = {trial.folder: _failure(trial, runs / trial.folder, failed) for trial in trials}
    if any(reasons.values()):
        shown = [f"{trial}: {reasons[trial.folder]}" for trial in trials if reasons[trial.folder]]
        return {"seeds": list(table.confirm), "failed": shown}
    values = {
        name: [
            read_finished(runs / trial.folder, trial).metrics[metric]
            for trial in trials
            if trial.name == name
        ]
        for name in recipes
    }
    default, chosen = values.values()
    maximum = METRICS[metric].maximum
    gap = difference(chosen, default, bounds=(-maximum, maximum))
    return {
        "seeds": list(table.confirm),
        "failed": [],
        "default": spread(default),
        "best": spread(chosen),
        "difference": {
            "difference": float(np.mean(chosen) - np.mean(default)),
            "low": None if gap is None else gap.low,
            "high": None if gap is None else gap.high,
        },
    }


def _failure(trial: Trial, folder: Path, failed: Mapping[str, str]) -> str:
    if trial.folder in failed:
        return failed[trial.folder]
    return "training diverged" if not (folder / "result.json").is_file() else ""


def _check_seeds(recipe: Recipe, table: Tune) -> None:
    """Raise UserError if a confirming seed is one of the search."""
    if common := set(table.confirm) & set(_seeds(recipe, table)):
        raise UserError(
            f"[tune] confirm: seed {min(common)} is one of the trials; confirm with other seeds"
        )


def _seeds(recipe: Recipe, table: Tune) -> tuple[int, ...]:
    return table.seeds or (recipe.seed,)


def _one_thread(recipe: Recipe) -> Recipe:
    """Return the recipe with one thread, unless it has a number of threads."""
    return replace(recipe, device=replace(recipe.device, threads=recipe.device.threads or 1))


def _entry(entry: Any) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in vars(entry).items()
        if value is not None
    }


def _lengths(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the epochs and seconds of training and evaluation of a trial's runs."""
    lines = [
        line
        for folder in folders
        if (folder / "timing.jsonl").is_file()
        for line in LogTail(folder / "timing.jsonl").lines()
    ]
    done = [line for line in lines if line["event"] in ("epoch", "evaluate")]
    epochs = {line["epoch"] for line in done if line["event"] == "epoch"}
    return {"epochs": len(epochs), "seconds": round(sum(line["seconds"] for line in done), 3)}


@contextmanager
def _open_database(
    out: Path, recipe: Recipe, metric: str, default: Mapping[str, Any]
) -> Iterator["Study"]:
    """Open or begin the study. Raises UserError if the file is another study, and changes nothing
    in it then."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = out / DATABASE
    existed = path.exists()
    if existed:
        _refuse_other_file(path)
    try:
        storage = optuna.storages.RDBStorage(
            # the path is not put into the URL, where some characters have a meaning
            "sqlite://",
            engine_kwargs={"creator": lambda: sqlite3.connect(path)},
        )
        names = optuna.study.get_all_study_names(storage)
        if names and names != [NAME]:
            raise UserError(f"{path} is another study of optuna; choose another folder")
        study = optuna.create_study(
            storage=storage,
            study_name=NAME,
            direction="minimize" if METRICS[metric].lower_is_better else "maximize",
            load_if_exists=True,
        )
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise UserError(
            f"{path} cannot be read ({reason}): restore it, or choose another folder; the runs in "
            f"{out / TRIALS} are kept"
        ) from None
    try:
        before = study.user_attrs.get("recipe")
        if before is None and study.get_trials(deepcopy=False):
            raise UserError(f"{path} is another study of optuna; choose another folder")
        if before is not None:
            _refuse_other_search(out, before, recipe)
        else:
            study.set_user_attr("recipe", to_toml(recipe))
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(dict(default))
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _refuse_other_file(path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(16)
    if header and not header.startswith(b"SQLite format 3"):
        raise UserError(f"{path} is not an SQLite database: restore it, or choose another folder")


def _refuse_other_search(out: Path, before: str, recipe: Recipe) -> None:
    old = parse_recipe(before, where=str(out / DATABASE))
    changed = [
        f"{key}: {change}"
        for key, change in differences(old, recipe).items()
        if not f"{key}:".startswith(HARMLESS)
    ]
    if changed:
        raise UserError(
            f"{out} was begun with another recipe or space ({'; '.join(changed)}); choose another "
            "folder, or give the recipe that it was begun with"
        )


def _sampler(table: Tune, number: int) -> Any:
    """Return the sampler of one trial."""
    from optuna import samplers
    from optuna.exceptions import ExperimentalWarning

    seed = int(np.random.SeedSequence([table.seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if table.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        if table.sampler == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=table.startup_trials)
        # running trials count as bad ones, so that jobs do not all try the same
        return samplers.TPESampler(
            seed=seed, n_startup_trials=table.startup_trials, constant_liar=True
        )


def _pruner(table: Tune) -> Any:
    from optuna import pruners

    pruner = table.pruner
    if pruner.kind == "none":
        return pruners.NopPruner()
    return pruners.MedianPruner(pruner.startup_trials, pruner.warmup_epochs)
