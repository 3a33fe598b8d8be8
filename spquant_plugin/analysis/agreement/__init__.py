"""Independent agreement: another tool counts the same network, and says the same or not.

Quantised layers are folded into plain ones first, because that is what other tools know. Each
number of the tool is compared with ours *by the tool's own definition*, worked out from our report
of the very same copy. Where no number of ours has that definition, the row says why, and counts for
nothing: an agreement in which nothing can be compared is none.
"""

from .compare import neurobench, op_counter
from .record import Agreement, AgreementRow

__all__ = ["Agreement", "AgreementRow", "neurobench", "op_counter"]
