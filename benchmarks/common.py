"""Names that the benchmarks share, and that a command needs before it loads torch."""

SIZES = ("tiny", "full")


def speedup_text(record: dict) -> str:
    """Median, least and greatest of a record's speedup; nothing where it is compared with none."""
    return (
        "{median:.2f} ({min:.2f}-{max:.2f})".format(**record["speedup"])
        if "speedup" in record
        else ""
    )
