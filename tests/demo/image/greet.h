int greet_version(void);
const char *greet_hello(int n);
const char *greet_goodbye(int n);
