"""Sections of a report that only a model's evaluation has: its loss, and views it has seen."""

from __future__ import annotations

from tar3d.metrics.summary import cell, markdown_table


def nll_section(losses: dict[str, dict], condition: str) -> list[str]:
    """Markdown of the loss under the right, another shape's and no condition.

    `losses` are aggregates by name; a single shape has none under another shape's condition.
    `condition` is the word for it.
    """
    titles = {
        "right": f"right {condition}",
        "shuffled": f"another shape's {condition}",
        "null": f"no {condition}",
    }
    shown = [name for name in titles if name in losses]
    cells = [cell(losses[name], ".4f") for name in shown]
    table = markdown_table([titles[name] for name in shown], [cells])
    title = f"## Does it use its {condition}?"
    return ["", title, "", "NLL of the true tokens in nats a token.", "", *table, ""]


def views_line(views_in_training: int) -> str:
    """A sentence on how many of the views are training views."""
    return (
        f"Views that are, pixel by pixel, training views: {views_in_training}. More than 0 means "
        "that test shapes were trained on."
    )
