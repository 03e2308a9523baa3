"""The loops of the prefix cache: a tree of nodes, its queues and expiries.

From below: `nodes`, `children`, `expiries`, `queues`, `split_join` keep the tree; `paths` locks and
gives back, `compare` and `search` find, `insertion`, `dropping`, `freeing` and `reclaim` change
what is cached; `prefix`, `upkeep`, `check_nodes` and `check_lists` are what a facade calls. Of the
GPU there is only what fetches page ids and hands over owners: `prefix_cuda`, `upkeep_cuda`.
"""
