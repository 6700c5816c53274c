"""The command line: ``vidray score --help``."""

from __future__ import annotations

import contextlib
import inspect
import select
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vidray import __version__, logs
from vidray.cli.parsing import parse
from vidray.cli.verdict_line import Ending
from vidray.cpu_tuning import use_one_arena
from vidray.errors import (
    EXIT_CODES,
    RunError,
    Terminated,
    TooManyFailuresError,
    TooMuchChangedError,
    UsageError,
    exit_code,
)
from vidray.progress import Progress
from vidray.scoring.config import ScoreConfig
from vidray.storage import redaction, retry

if TYPE_CHECKING:
    from vidray.scoring.job import ScoreJob

_EXIT_CODES = "\n".join(f"  {code:<11} {meaning}" for code, meaning in EXIT_CODES.items())
_USAGE = f"""vidray {__version__}: fine-tune video classifiers, and score buckets of videos into Parquet

usage: vidray COMMAND [OPTIONS]

commands:
  score       score every video of the sources: one row per video, resumable, only what is new
  nightly     a whole night for a scheduler: score, compare with the last good run, a page on it, tell webhooks
  verify      check an output: parts against plans and keys, row by row
  query       ask an output in SQL; without SQL an overview: videos, labels, failures, nights
  compact     copy many small parts into few files, which make queries of a year of nights quick
  forget      take videos out of an output for good, as a request for erasure asks
  export      write when something happens in each video: CSV, ActivityNet's JSON, chapters for a browser
  similar     list the videos most like one of them, or pairs that are nearly the same, by their embeddings
  compare     print what changed from one run of score to another; an exit code for what is too much
  report      write a page on a run of score, or on a training, as one HTML file
  status      say who works on an output now and how the last nights ended; an exit code for a monitor
  show        show one video in the terminal or as a picture, and what a model makes of it
  preview     show the clips that training or validation would see, as a contact sheet or an animation
  train       fine-tune a model on labelled videos, data-parallel, resumable: a checkpoint that score can use
  evaluate    evaluate a checkpoint on labelled videos
  new         make an untrained checkpoint of any model, to try it or to train it from scratch
  convert     make a checkpoint from published weights of MoViNet or PyTorchVideo
  models      list the models: parameters, input, published accuracy, where their weights are
  demo        make videos, train a small model on them, score others, and query the result
  completion  print a script for a shell: source <(vidray completion bash)

exit codes:
{_EXIT_CODES}

vidray COMMAND --help explains a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code, of those in `EXIT_CODES`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    ending = Ending()
    commands: dict[str, Callable[[list[str]], int]] = {
        "score": lambda rest: score(rest, ending),
        "nightly": lambda rest: nightly(rest, ending),
        "verify": verify,
        "query": query,
        "compact": compact,
        "forget": forget,
        "export": export,
        "similar": similar,
        "compare": compare,
        "report": report,
        "status": status,
        "show": show,
        "train": train,
        "evaluate": evaluate,
        "preview": preview,
        "new": new,
        "convert": convert,
        "models": models,
        "demo": demo,
        "completion": completion,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"vidray {__version__}")
        return 0
    if arguments[0] not in commands:
        print(f"vidray: got command {arguments[0]!r}, allowed are {', '.join(commands)}\n\n{_USAGE}", file=sys.stderr)
        return 2
    try:
        return _guarded(lambda: ending.watch(lambda: commands[arguments[0]](arguments[1:])))
    finally:
        ending.tell()


def _guarded(command: Callable[[], int]) -> int:
    """Turn what a user can cause into a message and an exit code. A bug of ours keeps its traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return command()
    except BaseException as error:
        code = exit_code(error)
        if code > 128:
            logs.tell("interrupted; nothing is broken, the same command goes on from here")
            return code
        if isinstance(error, UsageError | TooManyFailuresError | TooMuchChangedError | RunError):
            logs.tell(redaction.redact(str(error)))
            return code
        if not (isinstance(error, BrokenPipeError) and _reader_is_gone()):
            if not logs.is_json() or isinstance(error, SystemExit):
                raise
            logs.ROOT.critical("%s", redaction.redact(str(error)), exc_info=error)
            return code
        sys.stdout = sys.stderr = None
        return 1


def _terminate(signum: int, frame: object) -> None:
    raise Terminated


def _reader_is_gone() -> bool:
    """True if nobody reads our output any more, as with `| head`."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # it is no file
            poll.register(stream.fileno(), 0)  # errors are always told
    return any(event & select.POLLERR for _, event in poll.poll(0))


def score(arguments: list[str], ending: Ending) -> int:
    """``vidray score``."""
    config = _parse_night(ScoreConfig, arguments, "vidray score", ending)
    from vidray.scoring.job import ScoreJob

    job = ScoreJob(config)
    return _run_night(job, job.run, config, ending)


def nightly(arguments: list[str], ending: Ending) -> int:
    """``vidray nightly``."""
    from vidray.results.nightly import Nightly, NightlyConfig

    config = _parse_night(NightlyConfig, arguments, "vidray nightly", ending)
    night = Nightly(config)
    return _run_night(night.job, night.run, config, ending)


def _parse_night(config_class: Any, arguments: list[str], prog: str, ending: Ending) -> Any:
    ending.is_night = True
    config = parse(config_class, arguments, prog=prog)
    ending.config = None if config.dry_run else config
    use_one_arena()  # before there are threads
    return config


def _run_night(job: ScoreJob, run: Callable[[], object], config: ScoreConfig, ending: Ending) -> int:
    retry.configure(on_wait=job.progress.show)
    if config.dry_run:
        print(job.dry_run())
        return 0
    try:
        run()
        ask = "similar --duplicates 0.98" if job.config.no_labels else "query"
        job.progress.say(f"next: vidray {ask} --output {shlex.quote(job.store.uri)}")
    finally:
        ending.verdict = job.verdict
    return 0


def verify(arguments: list[str]) -> int:
    """``vidray verify``."""
    from vidray.results.verify import VerifyConfig
    from vidray.results.verify import verify as run_verification

    result = run_verification(parse(VerifyConfig, arguments, prog="vidray verify"))
    print(result)
    if result.problems:
        print("next: the vidray score command of this output, which does again what is lost")
    return 1 if result.problems else 0


def query(arguments: list[str]) -> int:
    """``vidray query``."""
    from vidray.results.query import QueryConfig
    from vidray.results.query import query as run_query

    run_query(parse(QueryConfig, arguments, prog="vidray query"))
    return 0


def compact(arguments: list[str]) -> int:
    """``vidray compact``."""
    from vidray.results.compact import CompactConfig
    from vidray.results.compact import compact as run_compaction

    config = parse(CompactConfig, arguments, prog="vidray compact")
    print(run_compaction(config))
    print(f"next: vidray query --output {shlex.quote(config.output)}")
    return 0


def forget(arguments: list[str]) -> int:
    """``vidray forget``."""
    from vidray.results.forget import ForgetConfig, format_forgotten
    from vidray.results.forget import forget as run_forgetting

    config = parse(ForgetConfig, arguments, prog="vidray forget")
    print("\n".join(format_forgotten(run_forgetting(config), dry_run=config.dry_run)))
    print(f"next: vidray verify --output {shlex.quote(config.output)}")
    return 0


def export(arguments: list[str]) -> int:
    """``vidray export``."""
    from vidray.results.moments import ExportConfig
    from vidray.results.moments import export as run_export

    config = parse(ExportConfig, arguments, prog="vidray export")
    text = run_export(config)
    print(f"written to {config.to}\n" if text is None else text, end="")
    return 0


def similar(arguments: list[str]) -> int:
    """``vidray similar``."""
    from vidray.results.similar import SimilarConfig, duplicates
    from vidray.results.similar import similar as find_similar

    config = parse(SimilarConfig, arguments, prog="vidray similar")
    for similarity, *uris in find_similar(config) if config.to is not None else duplicates(config):
        print(f"{similarity:.4f} {' '.join(uris)}")
    return 0


def compare(arguments: list[str]) -> int:
    """``vidray compare``."""
    from vidray.results.compare import CompareConfig
    from vidray.results.compare import compare as run_comparison

    run_comparison(parse(CompareConfig, arguments, prog="vidray compare"))
    return 0


def report(arguments: list[str]) -> int:
    """``vidray report``."""
    from vidray.results.report import ReportConfig
    from vidray.results.report import report as write_report

    config = parse(ReportConfig, arguments, prog="vidray report")
    write_report(config)
    print(f"written to {config.to}")
    return 0


def status(arguments: list[str]) -> int:
    """``vidray status``."""
    from vidray.results.status import StatusConfig, format_status, read_status

    config = parse(StatusConfig, arguments, prog="vidray status")
    told = read_status(config)
    print(told.to_json() if config.json else format_status(told))
    return told.exit_code


def show(arguments: list[str]) -> int:
    """``vidray show``."""
    from vidray.results.show import ShowConfig, following
    from vidray.results.show import show as show_video

    config = parse(ShowConfig, arguments, prog="vidray show")
    show_video(config)
    print(f"next: {following(config)}")
    return 0


def preview(arguments: list[str]) -> int:
    """``vidray preview``."""
    from vidray.cli.preview import PreviewConfig, run_preview

    config = parse(PreviewConfig, arguments, prog="vidray preview")
    print(run_preview(config))
    sources = " ".join(f"--source {shlex.quote(redaction.public_uri(source))}" for source in config.source)
    print(f"next: vidray train {sources} --model {shlex.quote(config.model)} --output MODEL")
    return 0


def train(arguments: list[str]) -> int:
    """``vidray train``."""
    from vidray.training.config import TrainConfig

    config = parse(TrainConfig, arguments, prog="vidray train")
    from vidray.training import job

    job.train(config, log=Progress(out=sys.stdout, logger="vidray.training").log)
    return 0


def evaluate(arguments: list[str]) -> int:
    """``vidray evaluate``."""
    from vidray.training.config import EvaluateConfig

    config = parse(EvaluateConfig, arguments, prog="vidray evaluate")
    from vidray.results.evaluation import evaluate as run_evaluation

    log = Progress(out=sys.stdout, logger="vidray.training").log
    run_evaluation(config, log=log)
    log(f"next: vidray score --source VIDEOS --model {config.model} --output SCORES")
    return 0


def demo(arguments: list[str]) -> int:
    """``vidray demo``."""
    from vidray.cli.demo import DemoConfig, run_demo

    return run_demo(parse(DemoConfig, arguments, prog="vidray demo"))


def new(arguments: list[str]) -> int:
    """``vidray new``."""
    from vidray.checkpoints.new import NewConfig, new_checkpoint

    config = parse(NewConfig, arguments, prog="vidray new")
    meta = new_checkpoint(config)
    folder, trained = (shlex.quote(config.folder.rstrip("/") + end) for end in ("", "-trained"))
    print(f"{config.folder}: {meta.family}, untrained, {len(meta.labels)} labels, fingerprint {meta.fingerprint[:12]}…")
    print("what to do next, with videos in a folder for each label:")
    print(f"  vidray preview --source VIDEOS --model {folder}")
    print(f"  vidray train --source VIDEOS --model {folder} --output {trained}")
    return 0


def convert(arguments: list[str]) -> int:
    """``vidray convert``."""
    from vidray.checkpoints.convert import Conversion
    from vidray.checkpoints.convert import convert as run_conversion

    conversion = parse(Conversion, arguments, prog="vidray convert")
    meta = run_conversion(conversion)
    print(f"{conversion.output}: {meta.family}, {len(meta.labels)} labels, fingerprint {meta.fingerprint[:12]}…")
    print(f"next: vidray score --source VIDEOS --model {conversion.output} --output SCORES")
    return 0


def models(arguments: list[str]) -> int:
    """``vidray models``."""
    from vidray.models.catalogue import CATALOGUE, ModelsConfig, format_table

    config = parse(ModelsConfig, arguments, prog="vidray models")
    print(format_table([entry for entry in CATALOGUE if config.family in (None, entry.family)]))
    print("next: vidray convert FAMILY …, or vidray train --source VIDEOS --model HUB_ID --output MODEL")
    return 0


def completion(arguments: list[str]) -> int:
    """``vidray completion``."""
    from vidray.cli.completion import SHELLS, completion_script, configs_of_commands

    if "-h" in arguments or "--help" in arguments:
        print(inspect.cleandoc(sys.modules["vidray.cli.completion"].__doc__ or ""))
        return 0
    shell = arguments[0] if len(arguments) == 1 else " ".join(arguments)
    if shell not in SHELLS:
        raise UsageError(f"vidray completion: got {shell!r}, allowed are {', '.join(SHELLS)}")
    print(completion_script(shell, configs_of_commands()), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
