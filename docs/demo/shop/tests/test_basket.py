"""What a basket costs."""

from shop.basket import Line, total


def test_an_empty_basket_costs_nothing() -> None:
    """Nor does it fail."""
    assert total([]) == 0


def test_each_piece_counts() -> None:
    """Three apples cost three times one apple."""
    assert total([Line("apple", 50, 3), Line("bread", 250)]) == 400
