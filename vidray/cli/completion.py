"""``vidray completion SHELL``: a script that lets a shell complete commands, flags and the words behind flags.

source <(vidray completion bash)        # in ~/.bashrc or ~/.zshrc; fish: vidray completion fish | source
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidray.flags import choices_of, known_flags

SHELLS = ("bash", "zsh", "fish")

_BASH = """_vidray() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "${{COMP_WORDS[1]}} $before" in
{choices}
        esac
        if [ -z "$words" ] && [[ "$word" == -* ]]; then
            case "${{COMP_WORDS[1]}}" in
{flags}
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _vidray vidray
"""


def completion_script(shell: str, configs: Mapping[str, Any]) -> str:
    """The script of a shell of ``SHELLS``.

    Args:
        configs: each command's config, as for `known_flags`; None: it has no flags.
    """
    flags = {name: known_flags(config) if config else {} for name, config in configs.items()}
    if shell == "fish":
        return _fish(flags)
    script = _BASH.format(
        commands=" ".join(flags),
        choices="\n".join(
            f'            "{name} {flag}") words="{" ".join(choices_of(hint).values())}";;'
            for name, hints in flags.items()
            for flag, hint in hints.items()
            if choices_of(hint)
        ),
        flags="\n".join(
            f'                {name}) words="{" ".join([*hints, "--help"])}";;' for name, hints in flags.items()
        ),
    )
    return script if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{script}"


def _fish(flags: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"complete -c vidray -n __fish_use_subcommand -f -a '{' '.join(flags)}'"]
    for name, hints in flags.items():
        for flag, hint in hints.items():
            words = " ".join(choices_of(hint).values())
            asked = f" -x -a '{words}'" if words else "" if hint is bool else " -r"
            lines.append(f"complete -c vidray -n '__fish_seen_subcommand_from {name}' -l {flag[2:]}{asked}")
    return "\n".join(lines) + "\n"


def configs_of_commands() -> dict[str, Any]:
    """The config of each command that has flags of its own; None for the one that has none."""
    from vidray.checkpoints.convert import Conversion
    from vidray.checkpoints.new import NewConfig
    from vidray.cli.demo import DemoConfig
    from vidray.cli.preview import PreviewConfig
    from vidray.models.catalogue import ModelsConfig
    from vidray.results.compact import CompactConfig
    from vidray.results.compare import CompareConfig
    from vidray.results.forget import ForgetConfig
    from vidray.results.moments import ExportConfig
    from vidray.results.nightly import NightlyConfig
    from vidray.results.query import QueryConfig
    from vidray.results.report import ReportConfig
    from vidray.results.show import ShowConfig
    from vidray.results.similar import SimilarConfig
    from vidray.results.status import StatusConfig
    from vidray.results.verify import VerifyConfig
    from vidray.scoring.config import ScoreConfig
    from vidray.training.config import EvaluateConfig, TrainConfig

    return {
        **{"score": ScoreConfig, "verify": VerifyConfig, "query": QueryConfig, "similar": SimilarConfig},
        **{"compact": CompactConfig, "compare": CompareConfig, "forget": ForgetConfig, "report": ReportConfig},
        **{"show": ShowConfig, "nightly": NightlyConfig, "status": StatusConfig},
        **{"train": TrainConfig, "evaluate": EvaluateConfig},
        **{"preview": PreviewConfig, "new": NewConfig, "convert": Conversion, "models": ModelsConfig},
        **{"export": ExportConfig, "demo": DemoConfig, "completion": None},
    }
