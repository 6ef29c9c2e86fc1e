extern volatile int sunk;
int via_header2(int);
static inline int header(int n) { sunk = n + 1; return n * sunk; }
