// kernels_body.h for every instruction set.
#include "kernels.h"

#define OPERATORS depth_adaptive
#include "every_level.h"
