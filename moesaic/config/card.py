"""`CardConfig`: what a checkpoint's ``README.md`` says that none of its other files shows."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from moesaic.config.settings import Settings

Word = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f]+$", max_length=200)]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=200)]
Published = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$", max_length=200)]
Language = Annotated[str, Field(pattern=r"^[A-Za-z]{2,12}(-[A-Za-z0-9]+)*$")]


class CardConfig(Settings):
    """The fields of a model card. What is not given is not guessed, and left out of the card."""

    title: Line | None = None
    """Heading; None takes the name of the folder."""
    license: Word | None = None
    """Identifier of the licence, as hubs write it: ``mit``, ``apache-2.0``, ``other``. None takes
    licence, its name and its link from the card of the base, where there are some."""
    license_name: Word | None = None
    """What the licence is called, for ``license = "other"``."""
    license_link: Word | None = None
    """Where its text is, for ``license = "other"``: an address, or a file in the folder."""
    base_model: Published | None = None
    """Where the base is published, like ``deepseek-ai/DeepSeek-V2-Lite``."""
    datasets: Annotated[tuple[Word, ...], Field(strict=False)] = ()
    """Where the data is published, like ``openai/gsm8k``."""
    language: Annotated[tuple[Language, ...], Field(strict=False)] = ()
    """Codes of the languages it is for, like ``en``."""

    @model_validator(mode="after")
    def _others_are_named(self) -> Self:
        details = self.license_name or self.license_link
        if details and self.license != "other":
            raise ValueError(
                f"license_name and license_link are for license='other', and license is "
                f"{self.license!r}; remove them, or set license to 'other'"
            )
        if self.license == "other" and self.license_name is None:
            raise ValueError("license='other' does not say which; give it a license_name")
        return self

    def front_matter(self) -> dict[str, str | list[str]]:
        """What is given, under the keys that hubs read."""
        given: dict[str, str | list[str] | None] = {
            "license": self.license,
            "license_name": self.license_name,
            "license_link": self.license_link,
            "base_model": self.base_model,
            "datasets": list(self.datasets),
            "language": list(self.language),
        }
        return {key: value for key, value in given.items() if value}
