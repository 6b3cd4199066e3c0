"""`python -m dreamllm` is the `dreamllm` command."""

import sys

from dreamllm.cli import main

sys.exit(main())
