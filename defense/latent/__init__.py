"""The learnt perturbation that k similar images share (DESIGN.md 2; docs/method.md).

An image passes `grouping` (which k images belong together), `condense` (the one image that stands for them, learnt so that
networks of the `pool` see in it what they see in the group on average) and `shared` (what the client trains on).
"""
