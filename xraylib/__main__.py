"""`python -m xraylib`."""

import sys

from xraylib.cli import main

sys.exit(main())
