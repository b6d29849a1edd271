"""`--print-config`: every value of a resolved config, with its origin and its meaning."""

from __future__ import annotations

from resnet_dist.config.help.answers import value_in_yaml
from resnet_dist.config.help.docstrings import first_sentence, section_docs, setting_docs
from resnet_dist.config.load import Resolved, to_flat


def describe(resolved: Resolved) -> str:
    """YAML of every value, each with its origin and the first sentence about it as a comment."""
    docs, sections = setting_docs(), section_docs()
    lines: list[tuple[str, str]] = []
    section = ""
    origin_width = max(
        (len(source) for source in resolved.sources.values() if len(source) < 24), default=0
    )
    for key, value in to_flat(resolved.config).items():
        head, dot, leaf = key.partition(".")
        if dot and head != section:
            lines.append((f"{head}:", first_sentence(sections[head])))
            section = head
        note = f"{resolved.sources[key]:<{origin_width}}  {first_sentence(docs[key])}"
        lines.append((f"{'  ' + leaf if dot else key}: {value_in_yaml(value)}", note))
    width = max((len(text) for text, _ in lines if len(text) < 60), default=0) + 1
    # The blank before # is YAML's: without it the note would be part of a long value.
    return "\n".join(f"{text:<{width}} # {note}" for text, note in lines)
