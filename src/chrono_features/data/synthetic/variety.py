"""How varied synthetic clips are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variety:
    """The probability that a clip has something; 0 switches it off.

    Attributes:
        roll: The camera rolls about its axis, up to half a turn; a cut-out turns so as well.
        zoom: It zooms, up to a factor of about two either way.
        shake: It shakes.
        jump: From some frame on it looks elsewhere, turned and zoomed: up to half a picture away. Not part of the usual
            mix.
        edges: Half of its points, of the moving and of the others, are near an outline of a thing, a part or a cover in
            the frame that they are drawn from. Not part of the usual mix.
        creature: There is a body with jointed limbs, some of them thin.
        covers: Pictures are pasted over the video and taken away again.
        blackout: Some frames show something else, where there are three or more.
        plain: A texture is weak, or one small tile repeated.
        blur: Motion blur or defocus, which comes and goes.
        shadow: Soft shadows and highlights wander over the picture.
        codec: Traces of compression: 8 x 8 blocks with rounded frequencies.
        grain: Strong noise, as of a sensor in the dark, that is another in every frame. Not part of the usual mix.

    Raises:
        ValueError: One of them is no probability.
    """

    roll: float = 0.5
    zoom: float = 0.35
    shake: float = 0.3
    jump: float = 0.0
    edges: float = 0.0
    creature: float = 0.5
    covers: float = 0.5
    blackout: float = 0.1
    plain: float = 0.25
    blur: float = 0.3
    shadow: float = 0.3
    codec: float = 0.3
    grain: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value!r}; expected a probability, 0 to 1")


USUAL = Variety()
NOTHING = Variety(**dict.fromkeys(Variety.__dataclass_fields__, 0.0))
