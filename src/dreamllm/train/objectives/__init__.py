"""What a run can train. One objective a file; the loop knows only the protocol in `objective.py`."""

from dreamllm.train.objectives.configs import ObjectiveConfig

__all__ = ["ObjectiveConfig"]
