/* A second static function of the same name. */
__attribute__((noinline)) static int helper(int x) { __asm__ volatile(""); return x * 5; }
int greet_second(int x) { return helper(x) + 1; }
