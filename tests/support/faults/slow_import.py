"""Takes a third of a second to import; what it defines last is missing when the import was cut off."""

import time

time.sleep(0.3)
LENGTHS = {"ab": 2}
