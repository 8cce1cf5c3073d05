import pytest

from chrono_features.data.synthetic import (
    Variety,
)


def test_variety_is_made_of_probabilities():
    with pytest.raises(ValueError, match=r"roll=1\.5; expected a probability"):
        Variety(roll=1.5)
