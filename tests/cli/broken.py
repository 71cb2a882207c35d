"""A module that cannot be imported, because of something that it imports itself."""

import a_module_that_nobody_has_installed  # type: ignore[import-not-found]  # noqa: F401
