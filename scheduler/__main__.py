import sys

from scheduler.simulate import main

sys.exit(main())
