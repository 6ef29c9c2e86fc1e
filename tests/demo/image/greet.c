// libgreet, the shared library of the demo image.
#include "greet.h"

int greet_version(void)
{
	return 1;
}

// The function in question: called in one run and not in the other.
const char *greet_hello(int n)
{
	return n ? "hello" : "hello, nobody";
}

// Called in no run.
const char *greet_goodbye(int n)
{
	return n ? "goodbye" : "goodbye, nobody";
}
