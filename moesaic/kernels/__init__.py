"""Operations whose speed matters, each with a `reference` form that defines it.

A faster form has the same signature and a test that it agrees; callers import the fast form and
know nothing else.
"""
