"""What a user would pick instead: the same legs by other libraries, each used as its documentation recommends."""
