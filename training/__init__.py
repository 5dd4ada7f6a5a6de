"""Scripts that train the lab: corpus, nine models, router. Nothing in `r2graph` imports them."""

import os

# Torch's default of two threads spin-waits on small models: ten times slower on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
