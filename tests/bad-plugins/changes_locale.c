/* M5: changes the locale, which is the whole process's, and which the C library reads from files. */
#include "fixture.h"
#include <locale.h>
static void step(const void *conf, void *state, const prv_in *in, prv_out *out) {
  (void)conf, (void)state;
  if (is_message(in)) setlocale(LC_ALL, "de_DE.UTF-8");
  good(in, out);
}
