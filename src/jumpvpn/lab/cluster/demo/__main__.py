"""``python -m jumpvpn.lab.cluster.demo``."""

import sys

from jumpvpn.lab.cluster.demo import main

sys.exit(main())
