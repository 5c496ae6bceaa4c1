// Elementary functions and the loss of one input. V is a double or a vector of doubles; every lane takes the
// same steps, so the results have the same bits on every instruction set. Whoever includes this file defines
// MODFAST_EACH, how functions are declared, and Bits<V>, the integer type of V's size.

template <class V>
MODFAST_EACH typename Bits<V>::Type bits_of(const V& x) {
  typename Bits<V>::Type bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
template <class V>
MODFAST_EACH V from_bits(const typename Bits<V>::Type& bits) {
  V x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
template <class V>
MODFAST_EACH V load(const double* from) {
  V x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
template <class V>
MODFAST_EACH void store(const V& x, double* to) {
  __builtin_memcpy(to, &x, sizeof x);
}
// The larger of a and b, but NaN if b is NaN, so that no overflow is lost.
template <class V>
MODFAST_EACH V larger(const V& a, const V& b) {
  return a > b ? a : b;
}
template <class V>
MODFAST_EACH V magnitude_of(const V& x) {
  return from_bits<V>(bits_of(x) & 0x7fffffffffffffff);
}

// For x = k ln 2 + r in [-708, 0] with |r| <= ln 2 / 2, computes 2^k, and exp(r) - 1 by its Taylor series,
// whose next term is below 2^-57.
template <class V>
MODFAST_EACH void exp_parts(const V& x, V* power, V* rest) {
  constexpr double to_integer = 6755399441055744.0;  // 1.5 * 2^52: a number added to it loses its fraction
  const V shifted = x * 1.4426950408889634 + to_integer;
  const V k = shifted - to_integer;
  // ln 2 in two parts. The first has few enough digits for its product with k to be exact.
  const V r = (x - k * 0.69314718036912382) - k * 1.9082149292705877e-10;
  const V r2 = r * r, r4 = r2 * r2;
  const V low = (r * (1.0 / 6) + 0.5) + r2 * (r * (1.0 / 120) + 1.0 / 24);
  const V middle = (r * (1.0 / 5040) + 1.0 / 720) + r2 * (r * (1.0 / 362880) + 1.0 / 40320);
  const V high = (r * (1.0 / 39916800) + 1.0 / 3628800) + r2 * (r * (1.0 / 6227020800) + 1.0 / 479001600);
  *rest = r + r2 * (low + r4 * (middle + r4 * high));
  // The low bits of shifted are k: moved into the exponent of 1.
  *power = from_bits<V>((bits_of(shifted) << 52) + bits_of(V{} + 1.0));
}

// exp(x) for x <= 0; 0 below -708, where the result is about the smallest normal double.
template <class V>
MODFAST_EACH V exp_of(const V& x) {
  V power, rest;
  exp_parts(larger(V{} - 708.0, x), &power, &rest);
  return x < -708.0 ? V{} : power + power * rest;
}

// log(x) for x >= 1: x = 2^k m with m in [1 / sqrt 2, sqrt 2), and log m = 2 artanh((m - 1) / (m + 1)). The
// bits of a NaN would give a number; adding x - x keeps the NaN.
template <class V>
MODFAST_EACH V log_of(const V& x) {
  using Integer = typename Bits<V>::Type;
  const Integer bits = bits_of(x);
  const V m1 = from_bits<V>((bits & 0x000fffffffffffff) | 0x3ff0000000000000);
  const auto high = m1 > 1.4142135623730951;
  const V m = high ? m1 * 0.5 : m1;
  // The exponent as a double: as the low bits of 2^52.
  const V exponent =
      from_bits<V>(((bits >> 52) & 0x7ff) | 0x4330000000000000) - (4503599627370496.0 + 1023.0);
  const V k = high ? exponent + 1.0 : exponent;
  const V f = m - 1.0, s = f / (m + 1.0), s2 = s * s, s4 = s2 * s2;
  // (artanh(s) - s) / s^3
  const V low = (s2 * (1.0 / 5) + 1.0 / 3) + s4 * (s2 * (1.0 / 9) + 1.0 / 7);
  const V middle = (s2 * (1.0 / 13) + 1.0 / 11) + s4 * (s2 * (1.0 / 17) + 1.0 / 15);
  const V high_terms = s2 * (1.0 / 21) + 1.0 / 19;
  const V s8 = s4 * s4;
  const V tail = s * s2 * (low + s8 * (middle + s8 * high_terms));
  return k * 0.69314718036912382 + ((s + s) + ((tail + tail) + (k * 1.9082149292705877e-10 + (x - x))));
}

// log(1 + x) for x in [0, 1], corrected for the rounding error of 1 + x.
template <class V>
MODFAST_EACH V log1p_of(const V& x) {
  const V u = x + 1.0;
  return log_of(u) + (x - (u - 1.0)) / u;
}

// log(1 + exp(x)).
template <class V>
MODFAST_EACH V softplus(const V& x) {
  return larger(V{}, x) + log1p_of(exp_of(V{} - magnitude_of(x)));
}

template <class V>
MODFAST_EACH V sigmoid_of(const V& x) {
  const V e = exp_of(V{} - magnitude_of(x));
  return (x < 0.0 ? e : V{} + 1.0) / (e + 1.0);
}

// tanh |x| = -e / (2 + e) with e = exp(-2 |x|) - 1.
template <class V>
MODFAST_EACH V tanh_of(const V& x) {
  const V size = magnitude_of(x), argument = V{} - (size + size);
  V power, rest;
  exp_parts(larger(V{} - 708.0, argument), &power, &rest);
  const V e = (power - 1.0) + power * rest, value = (V{} - e) / (e + 2.0);
  return x < 0.0 ? V{} - value : value;
}

// The normal distribution function: erfc(|x| / sqrt 2) / 2 for x < 0, else 1 minus that. The series is a
// Chebyshev series of (t + 1) exp(t^2) erfc(t) in (t - 2.5) / (t + 2.5), fitted to 1e-15.
template <class V>
MODFAST_EACH V normal_of(const V& x) {
  constexpr double series[] = {
      0.7639912664551598,      -0.22668588709797102,   0.022145211846553815,   0.008064183098648542,
      -0.004034570727013601,   0.0007364259686819664,  -8.871925000882748e-06, -2.0527358539706786e-05,
      1.8343843159445818e-06,  6.203520591590429e-07,  -8.107271887057334e-08, -2.429647726362604e-08,
      2.883027040700468e-09,   1.1647494383207825e-09, -6.929366760316931e-11, -6.009609950624505e-11,
      -1.5117995441576946e-12, 2.9349972630891985e-12, 3.950060682285316e-13,  -1.135269954185159e-13,
      -3.695618143704243e-14,  1.3986980759307237e-15, 2.40504403297661e-15,   2.974962289724845e-16,
      -9.993929179310244e-17};
  const V t = magnitude_of(x) * 0.70710678118654757, s = (t - 2.5) / (t + 2.5), twice = s + s;
  V last{}, before{};
  for (int k = 24; k > 0; --k) {
    const V next = (twice * last - before) + series[k];
    before = last;
    last = next;
  }
  const V upper = (s * last - before + series[0]) / (t + 1.0) * exp_of(x * x * -0.5) * 0.5;
  return x < 0.0 ? upper : V{} + 1.0 - upper;
}

template <class V>
MODFAST_EACH V activate(const V& x, Activation activation, double slope) {
  switch (activation) {
    case Activation::relu: return larger(V{}, x);
    case Activation::leaky_relu: return x < 0.0 ? x * slope : x;
    case Activation::gelu: return x * normal_of(x);
    case Activation::gelu_tanh: {
      const V inner = (x + x * x * x * 0.044715) * 0.79788456080286541;
      return x * 0.5 * (tanh_of(inner) + 1.0);
    }
    case Activation::silu: return x * sigmoid_of(x);
    case Activation::tanh: return tanh_of(x);
    case Activation::sigmoid: return sigmoid_of(x);
    case Activation::identity: break;
  }
  return x;
}

// The pre-activation of a neuron after the walked one. The change of neuron p (see Change) is
// changes[p * step].
template <class V>
MODFAST_EACH V moved_pre(const Moved& neuron, const Downstream& after, int64_t m, const double* changes,
                         int64_t step) {
  const auto term = [&](int64_t k) {
    return load<V>(changes + after.changes[k].from * step) * after.changes[k].weight;
  };
  V x = load<V>(neuron.pre + m);
  int64_t k = neuron.first;
  if (neuron.last - k >= 8) {
    // Four sums at once, since each addition of a sum waits for the one before.
    V a{}, b{}, c{};
    for (; k + 4 <= neuron.last; k += 4) {
      x = x + term(k);
      a = a + term(k + 1);
      b = b + term(k + 2);
      c = c + term(k + 3);
    }
    x = (x + a) + (b + c);
  }
  for (; k < neuron.last; ++k) x = x + term(k);
  return x;
}

// Logits that differ by no more than this times 1 + |logit| are equal, and the first of them is the answer.
constexpr double kTie = 1e-12;

// The losses of the inputs from m on, one for each lane of V, given the changes that enter the linear layers
// and, if the walked channel is a logit, what it holds. changes and logits are memory for
// entries + hidden_count and for others_count values, step numbers apart.
template <class V>
MODFAST_EACH V loss_after(const Downstream& after, int64_t m, const V& held, double* changes, double* logits,
                          int64_t step, double* right) {
  for (int64_t h = 0; h < after.hidden_count; ++h) {
    const Moved& neuron = after.hidden[h];
    const V x = moved_pre<V>(neuron, after, m, changes, step);
    store<V>(activate(x, neuron.activation, neuron.slope) - load<V>(neuron.held + m),
             changes + (h + after.entries) * step);
  }
  V own = after.is_label ? held
          : after.own    ? moved_pre<V>(*after.own, after, m, changes, step)
                         : load<V>(after.own_pre + m);
  V others;
  if (after.others_move()) {
    const V still = load<V>(after.largest + m);
    V largest = still;
    for (int64_t c = 0; c < after.others_count; ++c) {
      const V x = moved_pre<V>(after.others[c], after, m, changes, step);
      store<V>(x, logits + c * step);
      largest = larger(largest, x);
    }
    const bool walked = after.is_logit && !after.is_label;
    if (walked) largest = larger(largest, held);
    V sum = load<V>(after.sum + m) * exp_of(still - largest);
    for (int64_t c = 0; c < after.others_count; ++c) sum = sum + exp_of(load<V>(logits + c * step) - largest);
    if (walked) sum = sum + exp_of(held - largest);
    others = largest + log_of(sum);
  } else {
    others = load<V>(after.logsumexp + m);
  }
  if (right) {
    V before = load<V>(after.largest_before + m), behind = load<V>(after.largest_after + m);
    for (int64_t c = 0; c < after.others_count; ++c) {
      const V x = load<V>(logits + c * step);
      if (after.others[c].before_label) {
        before = larger(before, x);
      } else {
        behind = larger(behind, x);
      }
    }
    if (after.is_logit && !after.is_label && after.before_label) before = larger(before, held);
    if (after.is_logit && !after.is_label && !after.before_label) behind = larger(behind, held);
    const V tie = (magnitude_of(own) + 1.0) * kTie;
    const V first = own > before + tie ? V{} + 1.0 : V{};
    const V sign = load<V>(after.signs + m), yes = own >= behind - tie ? first : V{};
    // An input of another class is answered correctly by any answer but the label; padding counts as 0.
    store<V>(sign > 0.0 ? yes : (sign < 0.0 ? V{} + 1.0 - yes : V{}), right);
  }
  const V sign = load<V>(after.signs + m);
  return magnitude_of(sign) * softplus(sign * (others - own));
}

// The same, given the walked neuron's activation.
template <class V>
MODFAST_EACH V loss_of(const Downstream& after, int64_t m, const V& held, double* changes, double* logits,
                       int64_t step, double* right) {
  store<V>(held - load<V>(after.held + m), changes);
  return loss_after<V>(after, m, held, changes, logits, step, right);
}
