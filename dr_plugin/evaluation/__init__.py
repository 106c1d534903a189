"""Any model measured and searched with: a run of ours, a hand-crafted feature, a callable of the user's."""
