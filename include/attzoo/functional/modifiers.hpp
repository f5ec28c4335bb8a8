#pragma once
/// \file
/// All that changes attention: masks, score modifiers, and those of your own.

#include <attzoo/functional/callables.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/scores.hpp>
