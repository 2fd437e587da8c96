"""The evaluator's command under its old name: python -m tar3d.evaluation.judge"""

import sys

from tar3d.evaluation.evaluator import main

if __name__ == "__main__":
    sys.exit(main())
