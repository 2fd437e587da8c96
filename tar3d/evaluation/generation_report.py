"""Sections of a report that only a model's evaluation has: its loss, and views it has seen."""

from __future__ import annotations

from tar3d.metrics.summary import cell, markdown_table


def nll_section(losses: dict[str, dict], condition: str) -> list[str]:
    """Markdown of the loss under the right, another shape's and no condition.

    `losses` are aggregates in that order, `condition` is the word for it.
    """
    table = markdown_table(
        [f"right {condition}", f"another shape's {condition}", f"no {condition}"],
        [[cell(v, ".4f") for v in losses.values()]],
    )
    title = f"## Does it use its {condition}?"
    return ["", title, "", "NLL of the true tokens in nats a token.", "", *table, ""]


def views_line(views_in_training: int) -> str:
    """A sentence on how many of the views are training views."""
    return (
        f"Views that are, pixel by pixel, training views: {views_in_training}. More than 0 means "
        "that test shapes were trained on."
    )
