"""Functions and layers with other code's names, arguments and conventions, for code that is moving here."""
