"""Runs of the command line that take a second."""

TINY = [
    *("--threads", "1", "--steps", "40", "--num-samples", "32", "--starts", "16"),
    *("--hidden", "8", "--n-couplings", "2", "--evaluate-every", "10"),
    *("--evaluate-samples", "64", "--quiet"),
]
WELL = ["double-well", *TINY]


def only_line(capsys) -> str:
    """What a command said on standard error, which is one line and all that it said."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]
