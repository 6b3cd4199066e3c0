"""What a run can train. One objective a file; the loop knows only the protocol in `objective.py`."""

from collections.abc import Mapping

ObjectiveConfig = Mapping[str, object]
"""The union of the objectives' config dataclasses, told apart by their `kind`."""
